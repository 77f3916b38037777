//! Entropy device (5.4): random bytes from the host's kernel.

use std::io;

use model::microvm::{RateLimit, TokenBucket};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::buffers::Buffers;
use super::queue::{self, Served};
use super::{DeviceError, DeviceState, DeviceType, Source, VirtioDevice, Vrings};
use crate::rate_limiter::RateLimiter;

/// The driver keeps one buffer in it.
const QUEUE_SIZES: &[u16] = &[16];
/// The most bytes that one request gets; the driver asks again for the rest of its buffer.
const MAX_BYTES: usize = 64 * 1024;
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
}

impl Entropy {
    /// # Errors
    /// No timer could be made (too many open files).
    pub fn new() -> io::Result<Self> {
        Ok(Self { limiter: RateLimiter::new(Some(LIMIT))? })
    }

    fn serve(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        if self.limiter.is_blocked() {
            return Ok(());
        }
        queue::serve(vrings, 0, |request| {
            if !request.readable.is_empty() {
                return Err(DeviceError::Request("an entropy request is not to be read from"));
            }
            let wanted = request.writable.len().min(MAX_BYTES);
            if !self.limiter.take(wanted as u64)? {
                return Ok(Served::Later);
            }
            fill(&request.writable, wanted)?;
            Ok(Served::Done(wanted as u32))
        })
    }
}

/// Writes so many random bytes, for which there is room.
fn fill(buffers: &Buffers<'_>, wanted: usize) -> io::Result<()> {
    let mut random = [0; 4096];
    for offset in (0..wanted).step_by(random.len()) {
        let part = &mut random[..(wanted - offset).min(4096)];
        getrandom_exact(part)?;
        buffers.write_at(offset, part);
    }
    Ok(())
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
        self.limiter.forget();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::filtered;
    use crate::virtio::testing::{DATA, Driver, MIB};
    use proptest::prelude::*;

    fn start() -> (Entropy, Driver) {
        let mut entropy = Entropy::new().unwrap();
        let driver = Driver::start(&mut entropy, 0);
        (entropy, driver)
    }

    #[test]
    fn fills_all_buffers() {
        let (mut entropy, mut driver) = start();
        let buffers = [(DATA, 64, true), (2 * MIB, 5000, true)];
        assert_eq!(driver.request(&mut entropy, 0, &buffers).unwrap(), 5064);
        // The odds that 16 random bytes are zeros are those of guessing a key.
        assert!(driver.read(DATA, 64).chunks(16).all(|bytes| bytes != [0; 16]));
        assert!(driver.read(2 * MIB, 4992).chunks(16).all(|bytes| bytes != [0; 16]));
        assert_eq!(driver.read(DATA + 64, 64), [0; 64]);
        assert_eq!(driver.read(2 * MIB + 5000, 64), [0; 64]);
        assert_eq!(driver.interrupts(), (true, false));
    }

    #[test]
    fn one_request_gets_no_more_than_64_kib() {
        let (mut entropy, mut driver) = start();
        let buffers = [(DATA, 0x1000, true), (2 * MIB, MIB as u32, true)];
        assert_eq!(driver.request(&mut entropy, 0, &buffers).unwrap(), 65536);
        assert_eq!(driver.read(2 * MIB + 0xf000, 4096), vec![0; 4096]);
    }

    #[test]
    fn requests_over_the_limit_wait() {
        let (mut entropy, mut driver) = start();
        let mut served = 0;
        loop {
            driver.submit(0, &[(2 * MIB, MIB as u32, true)]);
            entropy.notified(0, &mut driver.vrings).unwrap();
            if driver.used(0).is_empty() {
                break;
            }
            served += 1;
            assert!(served < 1000);
        }
        assert!(entropy.limiter.is_blocked());
        // As when its timer fires: bytes have come back, or it is blocked again.
        let source = entropy.sources()[0];
        let mut answered = 0;
        while answered == 0 {
            entropy.ready(source.token, &mut driver.vrings).unwrap();
            answered = driver.used(0).len();
        }
        assert_eq!(answered, 1);
    }

    #[test]
    fn makes_only_the_system_calls_of_a_device_thread() {
        filtered(
            "virtio::entropy::tests::makes_only_the_system_calls_of_a_device_thread",
            start,
            |(mut entropy, mut driver)| {
                while !entropy.limiter.is_blocked() {
                    driver.submit(0, &[(2 * MIB, MIB as u32, true)]);
                    entropy.notified(0, &mut driver.vrings).unwrap();
                    driver.used(0);
                }
                entropy.ready(TIMER, &mut driver.vrings).unwrap();
                entropy.reset();
            },
            || {},
        );
    }

    #[test]
    fn malformed_requests_are_errors_of_the_device() {
        for buffers in [
            &[(DATA, 64, false)][..],
            &[(DATA, 64, false), (DATA, 64, true)],
            &[(DATA, 0, true)],
            &[(MIB, 64, true)],
        ] {
            let (mut entropy, mut driver) = start();
            driver.submit(0, buffers);
            assert!(entropy.notified(0, &mut driver.vrings).is_err(), "{buffers:?}");
        }
    }

    #[test]
    fn takes_on_only_its_own_state() {
        let (mut entropy, _) = start();
        entropy.restore(&entropy.save()).unwrap();
        let other = DeviceState::Balloon(crate::virtio::balloon::State { target: 0, actual: 0 });
        assert!(entropy.restore(&other).is_err());
    }

    proptest! {
        #[test]
        fn random_chains_change_only_their_buffers(
            buffers in prop::collection::vec(
                (DATA..DATA + 0x4000, 0..3000u32, prop::bool::weighted(0.9)), 1..8),
        ) {
            let (mut entropy, mut driver) = start();
            driver.submit(0, &buffers);
            let _ = entropy.notified(0, &mut driver.vrings);
            for (at, byte) in (DATA..).zip(driver.read(DATA, 0x8000)) {
                let inside = buffers.iter().any(|&(start, len, writable)| {
                    writable && (start..start + u64::from(len)).contains(&at)
                });
                prop_assert!(byte == 0 || inside);
            }
        }
    }
}
