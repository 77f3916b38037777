//! What devices need of a split virtqueue (2.7) beyond what the `virtio-queue` crate offers.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::buffers::Buffers;
use super::{DeviceError, Vrings};
use crate::GuestMemory;

/// How long a used request may wait for the ones behind it before the driver is interrupted. Below
/// it, one interrupt serves for many requests; above it (the host's disk is slow), the driver would
/// wait for nothing.
const MAX_INTERRUPT_DELAY: Duration = Duration::from_micros(50);

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

/// Marks chains as used, all at once: to the driver the buffers of one network packet appear together
/// (5.1.6.4), as they would not with one [`QueueT::add_used`] after the other. Each is its head and
/// the bytes written. Whether to interrupt is then asked of [`wants_interrupt`] only.
///
/// # Errors
/// The ring does not lie in the guest's memory.
pub(super) fn add_used_together(
    queue: &mut Queue,
    memory: &GuestMemory,
    chains: impl IntoIterator<Item = (u16, u32)>,
) -> Result<(), DeviceError> {
    let mut next = queue.next_used();
    let address = |offset: u64| {
        queue.used_ring().checked_add(offset).map(GuestAddress).ok_or(virtio_queue::Error::AddressOverflow)
    };
    for (head, len) in chains {
        // 2.7.8: flags and index, then elements of index and length, 4 bytes each.
        let slot = 4 + 8 * u64::from(next % queue.size());
        memory.write_obj(u32::from(head).to_le(), address(slot)?)?;
        memory.write_obj(len.to_le(), address(slot + 4)?)?;
        next = next.wrapping_add(1);
    }
    memory.store(next.to_le(), address(2)?, Ordering::Release)?;
    queue.set_next_used(next);
    Ok(())
}

/// Whether the driver wants to be interrupted for what was used since `before`, the queue's
/// [`next_used`](QueueT::next_used) then (2.7.7.2).
///
/// # Errors
/// The ring does not lie in the guest's memory.
pub(super) fn wants_interrupt(queue: &Queue, memory: &GuestMemory, before: u16) -> Result<bool, DeviceError> {
    let used = queue.next_used();
    if used == before {
        return Ok(false);
    }
    let read = |offset: u64| -> Result<u16, DeviceError> {
        let address = queue.avail_ring().checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?;
        Ok(u16::from_le(memory.load(GuestAddress(address), Ordering::Relaxed)?))
    };
    // What was used has to be visible before the driver's wish is read.
    fence(Ordering::SeqCst);
    if queue.event_idx_enabled() {
        // `used_event` lies behind the available ring's elements (2.7.6): flags, index, 2 bytes each.
        let event = read(4 + 2 * u64::from(queue.size()))?;
        return Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before));
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT
    Ok(read(0)? & 1 == 0)
}

/// One request of a driver, for a device that answers each before it takes the next.
pub(super) struct Request<'m> {
    pub(super) memory: &'m GuestMemory,
    pub(super) readable: Buffers<'m>,
    pub(super) writable: Buffers<'m>,
}

/// What became of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It is done; so many bytes were written to the front of its writable buffers.
    Done(u32),
    /// It cannot be served now: it stays in the queue, and so does everything behind it. The device
    /// has to call [`serve`] again.
    Later,
}

/// Serves what the driver has made available in a queue, until there is no more, and interrupts the
/// driver as it wishes. A queue that the driver did not set up has nothing.
///
/// # Errors
/// The queue or a chain is malformed, or `answer` failed. Earlier requests were answered.
pub(super) fn serve(
    vrings: &mut Vrings,
    index: usize,
    mut answer: impl FnMut(Request<'_>) -> Result<Served, DeviceError>,
) -> Result<(), DeviceError> {
    let Vrings { memory, queues, interrupt, .. } = vrings;
    let Some(queue) = queues.get_mut(index).filter(|queue| queue.ready()) else { return Ok(()) };
    let mut told = queue.next_used();
    let mut interrupt_for_used = |queue: &Queue| -> Result<(), DeviceError> {
        if wants_interrupt(queue, memory, told)? {
            interrupt.used_buffer();
        }
        told = queue.next_used();
        Ok(())
    };
    let outcome = serve_available(queue, memory, &mut answer, &mut interrupt_for_used);
    interrupt_for_used(queue)?;
    outcome
}

fn serve_available(
    queue: &mut Queue,
    memory: &GuestMemory,
    answer: &mut impl FnMut(Request<'_>) -> Result<Served, DeviceError>,
    interrupt_for_used: &mut impl FnMut(&Queue) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    let mut last = Instant::now();
    let mut more = false;
    loop {
        queue.disable_notification(memory)?;
        while let Some(chain) = next_chain(queue, memory)? {
            more = false;
            let (readable, writable) = Buffers::both(memory, chain)?;
            let head = readable.head();
            match answer(Request { memory, readable, writable })? {
                Served::Done(written) => queue.add_used(memory, head, written)?,
                Served::Later => {
                    give_back(queue, 1);
                    return Ok(());
                }
            }
            if last.elapsed() >= MAX_INTERRUPT_DELAY {
                interrupt_for_used(queue)?;
                last = Instant::now();
            }
        }
        if more {
            // The ring's index says that there is a request, but it cannot be read.
            return Err(DeviceError::Request("the available ring lies outside of the memory"));
        }
        more = queue.enable_notification(memory)?;
        if !more {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
