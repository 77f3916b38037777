//! A driver for the tests of devices that answer each request before they take the next: requests
//! well-formed and malformed, in memory with a hole.

use std::sync::Arc;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::testing::Ring;
use super::{DeviceError, Interrupt, VirtioDevice, Vrings};
use crate::GuestMemory;

/// The memory: one megabyte, a hole of as much, one megabyte more.
pub const MIB: u64 = 1 << 20;
pub const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), MIB as usize), (GuestAddress(2 * MIB), MIB as usize)];
/// Rings lie below this address, and nothing else.
pub const DATA: u64 = 0x8_0000;
const RING: u64 = 0x1_0000;

/// Address, length, whether the device may write to it.
pub type Buffer = (u64, u32, bool);

pub struct Driver {
    pub vrings: Vrings,
    pub rings: Vec<Ring>,
}

impl Driver {
    /// Speaks all features but `without`, and activates the device.
    pub fn start(device: &mut dyn VirtioDevice, without: u64) -> Self {
        Self::start_on(GuestMemory::from_ranges(&MEMORY).unwrap(), device, without)
    }

    pub fn start_on(memory: GuestMemory, device: &mut dyn VirtioDevice, without: u64) -> Self {
        use virtio_queue::QueueT;
        let features = device.features() & !without;
        let rings: Vec<_> = (0..)
            .zip(device.queue_sizes())
            .map(|(index, &size)| Ring::new(&memory, index * RING, size))
            .collect();
        let queues = rings.iter().map(|ring| {
            let mut queue = ring.queue();
            queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            queue
        });
        let queues = queues.collect();
        let interrupt = Interrupt::new(Arc::new(EventFd::new(0).unwrap()));
        let mut vrings = Vrings { memory, queues, interrupt, features };
        device.activate(&mut vrings).unwrap();
        Self { vrings, rings }
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
}
