//! One virtqueue as a driver lays it out, well or badly.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// Flags of a descriptor (2.7.5).
pub(in crate::virtio) const NEXT: u16 = 1;
pub(in crate::virtio) const WRITE: u16 = 2;

/// One virtqueue as a driver sees it.
pub(in crate::virtio) struct Ring {
    memory: GuestMemory,
    base: u64,
    size: u16,
    available: u16,
    used: u16,
    free: Vec<u16>,
    /// Per head, the descriptors of its chain.
    chains: Vec<Vec<u16>>,
}

impl Ring {
    pub(in crate::virtio) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        let chains = vec![Vec::new(); size.into()];
        Self { memory: memory.clone(), base, size, available: 0, used: 0, free: (0..size).collect(), chains }
    }

    pub(in crate::virtio) fn available_ring(&self) -> u64 {
        self.base + 0x4000
    }

    pub(in crate::virtio) fn used_ring(&self) -> u64 {
        self.base + 0x8000
    }

    pub(in crate::virtio) fn descriptor(&self, index: u16) -> u64 {
        self.base + 16 * u64::from(index)
    }

    pub(in crate::virtio) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_ring() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_ready(true);
        queue
    }

    /// Makes a chain of (address, length, device-writable) available, if there is room for it.
    pub(in crate::virtio) fn offer(&mut self, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let chain = self.free.split_off(self.free.len() - buffers.len());
        for (at, (&index, &(address, len, writable))) in chain.iter().zip(buffers).enumerate() {
            let next = chain.get(at + 1).copied();
            let flags = if writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.describe(index, (address, len), flags, next.unwrap_or(0));
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.publish(head);
        Some(head)
    }

    /// Writes a descriptor, whatever it says, of a buffer (address, length).
    pub(in crate::virtio) fn describe(&self, index: u16, (address, len): (u64, u32), flags: u16, next: u16) {
        let to = GuestAddress(self.descriptor(index));
        self.memory.write_obj(address, to).unwrap();
        self.memory.write_obj(len, GuestAddress(to.0 + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(to.0 + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(to.0 + 14)).unwrap();
    }

    /// Puts a head into the available ring, whatever it is.
    pub(in crate::virtio) fn publish(&mut self, head: u16) {
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(self.available_ring() + 2)).unwrap();
    }

    /// The chain that was used next: its head, and how many bytes were written to it.
    pub(in crate::virtio) fn completed(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, len))
    }

    /// The index of the available ring at which the device wants to be notified.
    pub(in crate::virtio) fn notify_at(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.used_ring() + 4 + 8 * u64::from(self.size))).unwrap()
    }

    pub(in crate::virtio) fn available_index(&self) -> u16 {
        self.available
    }
}
