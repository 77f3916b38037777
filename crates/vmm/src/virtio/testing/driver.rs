//! A driver: its queues, and requests that a device answers each before it takes the next.

use std::sync::Arc;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Ring;
use crate::GuestMemory;
use crate::virtio::{DeviceError, Interrupt, VirtioDevice, Vrings};

/// The memory, if none is given: one megabyte, a hole of as much, one megabyte more.
pub const MIB: u64 = 1 << 20;
const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), MIB as usize), (GuestAddress(2 * MIB), MIB as usize)];
/// Rings lie below this address, and nothing else.
pub const DATA: u64 = 0x8_0000;
const RING: u64 = 0x1_0000;

/// Address, length, whether the device may write to it.
pub type Buffer = (u64, u32, bool);

pub struct Driver {
    pub vrings: Vrings,
    pub rings: Vec<Ring>,
    line: Arc<EventFd>,
}

impl Driver {
    /// Sets queues up for these features.
    pub fn new(memory: GuestMemory, queue_sizes: &[u16], features: u64) -> Self {
        let rings: Vec<_> =
            (0..).zip(queue_sizes).map(|(index, &size)| Ring::new(&memory, index * RING, size)).collect();
        let queues = rings.iter().map(|ring| {
            let mut queue = ring.queue();
            queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            queue
        });
        let queues = queues.collect();
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let vrings = Vrings { memory, queues, interrupt: Interrupt::new(line.clone()), features };
        Self { vrings, rings, line }
    }

    /// Speaks all features but `without`, and activates the device.
    pub fn start(device: &mut dyn VirtioDevice, without: u64) -> Self {
        Self::start_on(GuestMemory::from_ranges(&MEMORY).unwrap(), device, without)
    }

    pub fn start_on(memory: GuestMemory, device: &mut dyn VirtioDevice, without: u64) -> Self {
        let mut driver = Self::new(memory, device.queue_sizes(), device.features() & !without);
        device.activate(&mut driver.vrings).unwrap();
        driver
    }

    pub fn event_idx(&self) -> bool {
        self.vrings.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0
    }

    /// Makes a chain of these buffers available: its head.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        self.rings[queue].offer(buffers).unwrap()
    }

    /// What the device has used since the last call: heads and written lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.rings[queue].completed()).collect()
    }

    /// Submits one chain and lets the device serve it: the written length.
    pub fn request(
        &mut self,
        device: &mut dyn VirtioDevice,
        queue: usize,
        buffers: &[Buffer],
    ) -> Result<u32, DeviceError> {
        let head = self.submit(queue, buffers);
        device.notified(queue, &mut self.vrings)?;
        let used = self.used(queue);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        Ok(used[0].1)
    }

    pub fn write(&self, addr: u64, data: &[u8]) {
        self.vrings.memory.write_slice(data, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.vrings.memory.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    /// Reads and acknowledges the interrupt: (used buffers, configuration).
    pub fn interrupts(&self) -> (bool, bool) {
        let status = self.vrings.interrupt.status();
        self.vrings.interrupt.acknowledge(status);
        (status & 1 != 0, status & 2 != 0)
    }

    /// How often the guest was interrupted since the last call.
    pub fn interrupt_count(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }
}
