//! Entropy device (5.4): random bytes from the host's kernel.

use std::io;

use model::microvm::{RateLimit, TokenBucket};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::Bytes;

use super::chain::{Chain, Served, serve_queue};
use super::{DeviceError, DeviceState, DeviceType, Source, VirtioDevice, Vrings};
use crate::GuestMemory;
use crate::rate_limiter::RateLimiter;

/// The driver keeps one buffer in it.
const QUEUE_SIZES: &[u16] = &[16];
/// The most bytes that one request gets; the driver asks again for the rest of its buffer.
const MAX_BYTES: u64 = 64 * 1024;
/// Random bytes do not run out, but the thread is shared with the machine's network: this keeps a
/// guest that reads its `/dev/hwrng` in a loop from slowing itself down there.
const LIMIT: RateLimit = RateLimit {
    bytes: Some(TokenBucket { rate: 1 << 20, burst: 1 << 20 }),
    operations: Some(TokenBucket { rate: 4096, burst: 4096 }),
};
const TIMER: u32 = 0;

/// A source of random bytes.
pub struct Entropy {
    limiter: RateLimiter,
    chain: Chain,
}

impl Entropy {
    /// # Errors
    /// No timer could be made (too many open files).
    pub fn new() -> io::Result<Self> {
        Ok(Self { limiter: RateLimiter::new(Some(LIMIT))?, chain: Chain::default() })
    }

    fn serve(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        if self.limiter.is_blocked() {
            return Ok(());
        }
        let Self { limiter, chain } = self;
        serve_queue(vrings, 0, chain, |memory, chain| {
            if !chain.readable.is_empty() {
                return Err(DeviceError::Request("an entropy request is not to be read from"));
            }
            let wanted = chain.writable.len().min(MAX_BYTES);
            if !limiter.take(wanted)? {
                return Ok(Served::Later);
            }
            Ok(Served::Done(fill(memory, chain, wanted as usize)?))
        })
    }
}

/// Writes `wanted` random bytes, not more than there is room for.
fn fill(memory: &GuestMemory, chain: &Chain, wanted: usize) -> Result<u32, DeviceError> {
    let mut written = 0;
    let mut random = [0; 4096];
    for buffer in chain.writable.iter() {
        let mut offset = 0;
        let length = (buffer.len as usize).min(wanted - written);
        while offset < length {
            let part = &mut random[..(length - offset).min(4096)];
            getrandom_exact(part)?;
            // The buffer lies in the guest's memory, so this does not overflow.
            memory.write_slice(part, vm_memory::GuestAddress(buffer.addr.0 + offset as u64))?;
            offset += part.len();
        }
        written += length;
    }
    Ok(written as u32)
}

fn getrandom_exact(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match getrandom(&mut *buffer, GetRandomFlags::empty()) {
            Ok(count) => buffer = &mut buffer[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn sources(&self) -> Vec<Source> {
        self.limiter.source(TIMER).into_iter().collect()
    }

    fn notified(&mut self, _queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.serve(vrings)
    }

    fn ready(&mut self, _token: u32, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.limiter.expired()?;
        self.serve(vrings)
    }

    fn reset(&mut self) {
        // What waits for its tokens is gone. Should the timer fail, it just fires later.
        let _ = self.limiter.expired();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Entropy
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        match state {
            DeviceState::Entropy => Ok(()),
            _ => Err(DeviceError::Request("the state is another device's")),
        }
    }
}
