//! From the guest to the tap.

use std::os::fd::AsFd;

use virtio_queue::{Queue, QueueT};

use super::tap::Tap;
use super::{HEADER, MAX_FRAME, header};
use crate::GuestMemory;
use crate::rate_limiter::RateLimiter;
use crate::virtio::buffers::{Buffers, Vectors};
use crate::virtio::{DeviceError, queue};

/// The most frames taken in one go.
const BATCH: usize = 256;

/// Sends what the guest has made available; without a tap, nowhere. Returns whether there may be
/// more. Interrupts are the caller's.
pub(super) fn transmit(
    tap: Option<&Tap>,
    limit: &mut RateLimiter,
    queue: &mut Queue,
    memory: &GuestMemory,
    features: u64,
) -> Result<bool, DeviceError> {
    for _ in 0..BATCH {
        if limit.is_blocked() {
            return Ok(false);
        }
        let Some(chain) = queue::next_chain(queue, memory)? else {
            if queue::arm(queue, memory)? == queue.next_avail() {
                return Ok(false);
            }
            continue;
        };
        let buffers = Buffers::readable(memory, chain)?;
        // A chain is shorter than 4 GiB.
        if !limit.take(buffers.len().min(MAX_FRAME) as u64)? {
            queue::give_back(queue, 1);
            return Ok(false);
        }
        if let Some(tap) = tap {
            send(tap, &buffers, features);
        }
        queue::add_used_together(queue, memory, [(buffers.head(), 0)])?;
    }
    Ok(true)
}

/// Sends a frame, or drops it: there is nobody to tell, here or on a real wire.
fn send(tap: &Tap, buffers: &Buffers<'_>, features: u64) {
    let mut header = [0; HEADER];
    if buffers.len() > MAX_FRAME || buffers.read_at(0, &mut header) < HEADER {
        return;
    }
    let Some(mut header) = header::for_host(header, features) else { return };
    let mut vectors = Vectors::new();
    vectors.push_own(&mut header);
    vectors.push(buffers, HEADER..buffers.len());
    // Errors: the interface is down or gone, the kernel refuses the header, or it lacks memory.
    let _ = vectors.write(tap.as_fd());
}
