//! Descriptor chains: what a driver makes available, checked, as byte streams (2.6, 2.7).
//!
//! A device must not depend on how a request is cut into descriptors (2.7.4), so what devices see
//! is the device-readable buffers one behind the other, and then the device-writable ones.

use std::time::{Duration, Instant};

use virtio_queue::{DescriptorChain, QueueOwnedT as _, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use super::{DeviceError, Vrings};
use crate::GuestMemory;

/// How long a used buffer may wait for the ones behind it before the driver is interrupted. Below
/// it, one interrupt serves for many requests; above it (the host's disk is slow), the driver would
/// wait for nothing.
const MAX_NOTIFICATION_DELAY: Duration = Duration::from_micros(50);

/// A part of the guest's memory, checked to lie in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub addr: GuestAddress,
    /// In bytes; never 0.
    pub len: u32,
}

/// Buffers that together are one stream of bytes. They may overlap.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Vec<Buffer>);

impl Buffers {
    /// In bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Buffer> + '_ {
        self.0.iter().copied()
    }

    /// Takes bytes off the front of the stream into `data`.
    ///
    /// # Errors
    /// [`DeviceError::Request`] if the stream is shorter.
    pub fn read_front(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<(), DeviceError> {
        let mut done = 0;
        let mut used_up = 0;
        for buffer in &mut self.0 {
            let missing = data.len() - done;
            if missing == 0 {
                break;
            }
            let count = missing.min(buffer.len as usize);
            memory.read_slice(&mut data[done..done + count], buffer.addr)?;
            done += count;
            if count == buffer.len as usize {
                used_up += 1;
            } else {
                // Both fit: `count` is less than a u32, and the buffer lies in memory.
                buffer.addr = buffer.addr.unchecked_add(count as u64);
                buffer.len -= count as u32;
            }
        }
        self.0.drain(..used_up);
        if done < data.len() {
            return Err(DeviceError::Request("it is too short"));
        }
        Ok(())
    }

    /// Takes the last byte off the stream: where it is.
    pub fn pop_last_byte(&mut self) -> Option<GuestAddress> {
        let last = self.0.last_mut()?;
        last.len -= 1;
        let addr = last.addr.unchecked_add(u64::from(last.len));
        if last.len == 0 {
            self.0.pop();
        }
        Some(addr)
    }

    /// Where the stream lies in this process: at least one slice for each buffer.
    ///
    /// # Errors
    /// A buffer does not lie in the guest's memory.
    pub fn slices<'a>(
        &self,
        memory: &'a GuestMemory,
        access: Permissions,
    ) -> Result<Vec<VolatileSlice<'a, ()>>, DeviceError> {
        let mut slices = Vec::with_capacity(self.0.len());
        for buffer in &self.0 {
            for slice in memory.get_slices(buffer.addr, buffer.len as usize, access)? {
                slices.push(slice?);
            }
        }
        Ok(slices)
    }
}

/// One request of the driver.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub readable: Buffers,
    pub writable: Buffers,
}

impl Chain {
    /// Reads the descriptors of a chain in place of what was here.
    ///
    /// # Errors
    /// The chain is empty, has no end or is longer than the queue; it has a buffer of no length or outside
    /// of the guest's memory; or a readable buffer follows a writable one (2.7.4.2).
    fn fill(
        &mut self,
        descriptors: DescriptorChain<&GuestMemory>,
        queue_size: u16,
    ) -> Result<(), DeviceError> {
        self.readable.0.clear();
        self.writable.0.clear();
        let memory = descriptors.memory();
        // The iterator just ends where a chain is malformed: then the last descriptor has a successor.
        let mut complete = false;
        for descriptor in descriptors.clone() {
            let (addr, len) = (descriptor.addr(), descriptor.len());
            complete = !descriptor.has_next();
            if len == 0 {
                return Err(DeviceError::Request("a buffer has no length"));
            }
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut self.writable, Permissions::Write)
            } else if self.writable.is_empty() {
                (&mut self.readable, Permissions::Read)
            } else {
                return Err(DeviceError::Request("a readable buffer follows a writable one"));
            };
            if !memory.check_range(addr, len as usize, access) {
                return Err(DeviceError::Memory(vm_memory::GuestMemoryError::InvalidGuestAddress(addr)));
            }
            buffers.0.push(Buffer { addr, len });
            if self.readable.0.len() + self.writable.0.len() > usize::from(queue_size) {
                return Err(DeviceError::Request("the chain is longer than the queue"));
            }
        }
        if complete { Ok(()) } else { Err(DeviceError::Request("the chain has no end")) }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is done; so many bytes were written to the front of its writable buffers.
    Done(u32),
    /// It cannot be served now: it stays in the queue, and so does everything behind it. The device
    /// has to call [`serve_queue`] again.
    Later,
}

/// Serves what the driver has made available in a queue, until there is no more, and interrupts the
/// driver as it wishes. A queue that the driver did not set up has nothing.
///
/// # Errors
/// The queue or a chain is malformed, or `serve` failed. Earlier requests were served.
pub fn serve_queue(
    vrings: &mut Vrings,
    index: usize,
    chain: &mut Chain,
    mut serve: impl FnMut(&GuestMemory, &mut Chain) -> Result<Served, DeviceError>,
) -> Result<(), DeviceError> {
    if !vrings.queues.get(index).is_some_and(QueueT::ready) {
        return Ok(());
    }
    let mut notified = vrings.queues[index].next_used();
    let outcome = serve_available(vrings, index, chain, &mut serve, &mut notified);
    if vrings.queues[index].next_used() != notified {
        vrings.notify(index)?;
    }
    outcome
}

/// `notified`: up to where in the used ring the driver was told of.
fn serve_available(
    vrings: &mut Vrings,
    index: usize,
    chain: &mut Chain,
    serve: &mut impl FnMut(&GuestMemory, &mut Chain) -> Result<Served, DeviceError>,
    notified: &mut u16,
) -> Result<(), DeviceError> {
    let mut last = Instant::now();
    let mut more = false;
    loop {
        let Vrings { memory, queues, .. } = vrings;
        let queue = &mut queues[index];
        queue.disable_notification(memory)?;
        while let Some(descriptors) = queue.iter(&*memory)?.next() {
            more = false;
            let head = descriptors.head_index();
            chain.fill(descriptors, queue.size())?;
            match serve(memory, chain)? {
                Served::Done(written) => queue.add_used(memory, head, written)?,
                Served::Later => {
                    queue.go_to_previous_position();
                    return Ok(());
                }
            }
            if last.elapsed() >= MAX_NOTIFICATION_DELAY {
                last = Instant::now();
                *notified = queue.next_used();
                if queue.needs_notification(memory)? {
                    vrings.interrupt.used_buffer();
                }
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
