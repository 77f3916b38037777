//! What devices need of a split virtqueue (2.7) beyond what the `virtio-queue` crate offers.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::DeviceError;
use crate::GuestMemory;

/// Takes the next chain that the driver has made available.
///
/// # Errors
/// The ring does not lie in the guest's memory, or is ahead by more than its size.
pub(super) fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, DeviceError> {
    Ok(queue.iter(memory)?.next())
}

/// Gives the last `count` chains taken back: they are available again, in the same order.
pub(super) fn give_back(queue: &mut Queue, count: u16) {
    queue.set_next_avail(queue.next_avail().wrapping_sub(count));
}

/// How many chains are available.
///
/// # Errors
/// The ring does not lie in the guest's memory.
pub(super) fn available(queue: &Queue, memory: &GuestMemory) -> Result<u16, DeviceError> {
    Ok(available_index(queue, memory)?.wrapping_sub(queue.next_avail()))
}

/// The driver's index of the available ring (2.7.6).
///
/// # Errors
/// The ring does not lie in the guest's memory.
pub(super) fn available_index(queue: &Queue, memory: &GuestMemory) -> Result<u16, DeviceError> {
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0)
}

/// Asks the driver to notify us of the next chain that it makes available, whether or not all of
/// those before were taken ([`QueueT::enable_notification`] assumes that they were). Returns the
/// driver's index read afterwards: if it is not the one that the caller has acted on, then what came
/// since may not be notified, and the caller must look again.
///
/// # Errors
/// The ring does not lie in the guest's memory.
pub(super) fn arm(queue: &Queue, memory: &GuestMemory) -> Result<u16, DeviceError> {
    // Without `VIRTIO_RING_F_EVENT_IDX` the driver notifies unless the used ring's flags forbid it,
    // and no device here forbids it.
    if queue.event_idx_enabled() {
        let index = available_index(queue, memory)?;
        // `avail_event` lies behind the used ring's elements (2.7.8): flags, index, 8 bytes each.
        let address = queue
            .used_ring()
            .checked_add(4 + 8 * u64::from(queue.size()))
            .ok_or(virtio_queue::Error::AddressOverflow)?;
        memory.store(index.to_le(), GuestAddress(address), Ordering::Relaxed)?;
        fence(Ordering::SeqCst);
    }
    available_index(queue, memory)
}
