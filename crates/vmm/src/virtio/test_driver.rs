//! A driver for the tests of devices: it lays out queues in memory as it is told to, well or badly.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceError, Interrupt, VirtioDevice, Vrings};
use crate::GuestMemory;

/// The memory: one megabyte, a hole of as much, one megabyte more.
pub const MIB: u64 = 1 << 20;
pub const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), MIB as usize), (GuestAddress(2 * MIB), MIB as usize)];
/// Queue N lies at `N * RING`, and nothing else below this address.
pub const DATA: u64 = 0x4_0000;
const RING: u64 = 0x8000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;

/// Address, length, whether the device may write to it.
pub type Buffer = (u64, u32, bool);

pub struct Driver {
    pub vrings: Vrings,
    /// Per queue: the next free descriptor, the available index, the used index up to which was read.
    positions: Vec<(u16, u16, u16)>,
}

impl Driver {
    /// Speaks all features but `without`, and activates the device.
    pub fn start(device: &mut dyn VirtioDevice, without: u64) -> Self {
        Self::start_on(GuestMemory::from_ranges(&MEMORY).unwrap(), device, without)
    }

    pub fn start_on(memory: GuestMemory, device: &mut dyn VirtioDevice, without: u64) -> Self {
        let features = device.features() & !without;
        let event_idx = features & (1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues: Vec<Queue> = (0..)
            .zip(device.queue_sizes())
            .map(|(index, &size)| {
                let mut queue = Queue::new(size).unwrap();
                let base = index * RING;
                queue.try_set_desc_table_address(GuestAddress(base)).unwrap();
                queue.try_set_avail_ring_address(GuestAddress(base + AVAILABLE)).unwrap();
                queue.try_set_used_ring_address(GuestAddress(base + USED)).unwrap();
                queue.set_event_idx(event_idx);
                queue.set_ready(true);
                assert!(queue.is_valid(&memory));
                queue
            })
            .collect();
        let positions = vec![(0, 0, 0); queues.len()];
        let interrupt = Interrupt::new(Arc::new(EventFd::new(0).unwrap()));
        let mut vrings = Vrings { memory, queues, interrupt, features };
        device.activate(&mut vrings).unwrap();
        Self { vrings, positions }
    }

    /// Writes a descriptor just as given.
    pub fn descriptor(&self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = queue as u64 * RING + u64::from(index) * 16;
        self.vrings.memory.write_obj(Descriptor::new(addr, len, flags, next), GuestAddress(at)).unwrap();
    }

    /// Makes a chain available that begins with this descriptor.
    pub fn available(&mut self, queue: usize, head: u16) {
        let size = self.vrings.queues[queue].size();
        let (_, available, _) = &mut self.positions[queue];
        let ring = queue as u64 * RING + AVAILABLE;
        let memory = &self.vrings.memory;
        memory.write_obj(head, GuestAddress(ring + 4 + u64::from(*available % size) * 2)).unwrap();
        *available = available.wrapping_add(1);
        memory.write_obj(*available, GuestAddress(ring + 2)).unwrap();
    }

    /// Makes a chain of these buffers available: its head.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let size = self.vrings.queues[queue].size();
        let head = self.positions[queue].0;
        for (number, &(addr, len, writable)) in (1u16..).zip(buffers) {
            let index = self.positions[queue].0;
            let next = (index + 1) % size;
            self.positions[queue].0 = next;
            let more = if usize::from(number) < buffers.len() { NEXT } else { 0 };
            self.descriptor(queue, index, addr, len, if writable { WRITE } else { 0 } | more, next);
        }
        self.available(queue, head);
        head
    }

    /// What the device has used since the last call: heads and written lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let size = self.vrings.queues[queue].size();
        let ring = queue as u64 * RING + USED;
        let memory = &self.vrings.memory;
        let index: u16 = memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let read = &mut self.positions[queue].2;
        let mut used = Vec::new();
        while *read != index {
            let at = ring + 4 + u64::from(*read % size) * 8;
            let id: u32 = memory.read_obj(GuestAddress(at)).unwrap();
            used.push((id as u16, memory.read_obj(GuestAddress(at + 4)).unwrap()));
            *read = read.wrapping_add(1);
        }
        used
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
