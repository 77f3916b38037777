//! Rate limits of a device: token buckets, and a timer for the work that has to wait.
//!
//! The buckets are pure arithmetic over a time that is passed in ([`Buckets`]); [`RateLimiter`] adds
//! the clock and a timerfd that a device's thread waits for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use model::microvm::{RateLimit, TokenBucket};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::virtio::Source;

/// Tokens are counted in billionths: a bucket with a rate of `r` tokens a second gains exactly `r`
/// of them each nanosecond, and nothing is lost to rounding.
const UNITS_PER_TOKEN: i128 = 1_000_000_000;

/// The longest that a timer is set for. A bucket that needs longer is asked again then.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// One token bucket. It begins full.
#[derive(Clone, Debug)]
struct Bucket {
    /// Units a nanosecond (equals tokens a second).
    rate: u128,
    /// Units that a full bucket holds: less than 2^94.
    full: i128,
    /// Units in the bucket. Below zero, down to -2^94, after a request larger than the bucket.
    level: i128,
    /// When `level` was true: time since the caller's origin.
    updated: Duration,
}

impl Bucket {
    fn new(limit: TokenBucket) -> Self {
        let full = i128::from(limit.burst) * UNITS_PER_TOKEN;
        Self { rate: u128::from(limit.rate), full, level: full, updated: Duration::ZERO }
    }

    /// Adds what has come back since the last call. A time before that counts as no time.
    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.updated).as_nanos();
        self.updated = self.updated.max(now);
        let missing = (self.full - self.level).unsigned_abs();
        // The product is only formed where it is smaller than `missing`, so it cannot overflow.
        match missing.checked_div(self.rate) {
            Some(nanoseconds) if elapsed <= nanoseconds => {
                self.level += (elapsed * self.rate).cast_signed();
            }
            Some(_) => self.level = self.full,
            None => {}
        }
    }

    /// The level from which on a request for so many tokens is served: a request larger than the
    /// bucket is served from a full one, and leaves it in debt.
    fn threshold(&self, tokens: u64) -> i128 {
        (i128::from(tokens) * UNITS_PER_TOKEN).min(self.full)
    }

    /// How long from the last refill until a request for so many tokens can be served.
    fn wait(&self, tokens: u64) -> Duration {
        let missing = self.threshold(tokens) - self.level;
        if missing <= 0 {
            return Duration::ZERO;
        }
        if self.rate == 0 {
            return Duration::MAX;
        }
        let nanoseconds = missing.unsigned_abs().div_ceil(self.rate);
        u64::try_from(nanoseconds).map_or(Duration::MAX, Duration::from_nanos)
    }

    fn take(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * UNITS_PER_TOKEN;
    }
}

/// The two buckets of a [`RateLimit`], for a caller that has a clock.
///
/// Over any window of time `t`, the tokens taken are at most `burst + rate * t`, plus, where the last
/// request was larger than `burst`, that excess; it is paid back before anything else is served.
/// A rate of 0 never gives a token back.
#[derive(Clone, Debug)]
pub struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    /// Full buckets.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self { bytes: limit.bytes.map(Bucket::new), operations: limit.operations.map(Bucket::new) }
    }

    /// Takes the tokens for one operation of `bytes` bytes out of both buckets, or out of none.
    /// `now` is the time since any fixed origin; it never runs backwards.
    ///
    /// # Errors
    /// The buckets do not have them: how long to wait before asking again ([`Duration::MAX`]: for
    /// good).
    pub fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.wait(tokens));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

/// A rate limit of a device, which may be none.
///
/// ```text
/// take() == false ──▶ leave the request in its queue ──▶ source is readable ──▶ expired(), go on
/// ```
#[derive(Debug)]
pub struct RateLimiter(Option<Limited>);

#[derive(Debug)]
struct Limited {
    buckets: Buckets,
    origin: Instant,
    timer: OwnedFd,
    blocked: bool,
}

impl RateLimiter {
    /// A limit with full buckets. `None`, or a limit without buckets, lets everything pass and
    /// needs no descriptor.
    ///
    /// # Errors
    /// No timer could be made (too many open files).
    pub fn new(limit: Option<RateLimit>) -> io::Result<Self> {
        let Some(limit) = limit.filter(|limit| limit.bytes.is_some() || limit.operations.is_some()) else {
            return Ok(Self::unlimited());
        };
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self(Some(Limited {
            buckets: Buckets::new(limit),
            origin: Instant::now(),
            timer,
            blocked: false,
        })))
    }

    /// Lets everything pass.
    #[must_use]
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// Asks for one operation of `bytes` bytes. `false`: not yet. Then nothing passes until
    /// the [source](Self::source) was readable and [`Self::expired`] was called.
    ///
    /// # Errors
    /// The timer could not be set.
    pub fn take(&mut self, bytes: u64) -> io::Result<bool> {
        let Some(limited) = &mut self.0 else { return Ok(true) };
        if limited.blocked {
            return Ok(false);
        }
        let Err(wait) = limited.buckets.take(bytes, limited.origin.elapsed()) else { return Ok(true) };
        limited.set_timer(wait.min(MAX_WAIT))?;
        limited.blocked = true;
        Ok(false)
    }

    /// Whether a request was turned away and its time has not come yet.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.blocked)
    }

    /// The descriptor that becomes readable when a request that was turned away may be tried again:
    /// the same for good, none where there is no limit.
    #[must_use]
    pub fn source(&self, token: u32) -> Option<Source> {
        self.0.as_ref().map(|limited| Source { fd: limited.timer.as_raw_fd(), token })
    }

    /// What was turned away is gone: requests may ask again. The source may still become readable.
    /// Makes no system call, so that a vCPU thread can do it, which may make none but its own.
    pub fn forget(&mut self) {
        if let Some(limited) = &mut self.0 {
            limited.blocked = false;
        }
    }

    /// The source was readable: quiets it, and lets requests ask again.
    ///
    /// # Errors
    /// The timer could not be read.
    pub fn expired(&mut self) -> io::Result<()> {
        let Some(limited) = &mut self.0 else { return Ok(()) };
        // Setting a timer also clears what was to be read from it.
        limited.set_timer(Duration::ZERO)?;
        limited.blocked = false;
        Ok(())
    }
}

impl Limited {
    /// Zero disarms.
    fn set_timer(&self, after: Duration) -> io::Result<()> {
        let it_value = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn bytes(rate: u64, burst: u64) -> RateLimit {
        RateLimit { bytes: Some(TokenBucket { rate, burst }), operations: None }
    }

    #[test]
    fn a_bucket_begins_full_and_comes_back_evenly() {
        let mut buckets = Buckets::new(bytes(1000, 500));
        let at = Duration::from_millis;
        assert_eq!(buckets.take(500, at(0)), Ok(()));
        assert_eq!(buckets.take(1, at(0)), Err(at(1)));
        assert_eq!(buckets.take(100, at(99)), Err(at(1)));
        assert_eq!(buckets.take(100, at(100)), Ok(()));
        // Never more than the burst, however long it rests.
        assert_eq!(buckets.take(500, at(1_000_000)), Ok(()));
        assert_eq!(buckets.take(1, at(1_000_000)), Err(at(1)));
    }

    #[test]
    fn a_request_larger_than_the_burst_is_served_from_a_full_bucket_and_paid_back() {
        let mut buckets = Buckets::new(bytes(1000, 500));
        let at = Duration::from_millis;
        assert_eq!(buckets.take(2500, at(0)), Ok(()));
        assert_eq!(buckets.take(1, at(0)), Err(at(2001)));
        assert_eq!(buckets.take(2500, at(2001)), Err(at(499)));
        assert_eq!(buckets.take(2500, at(2500)), Ok(()));
    }

    #[test]
    fn both_buckets_or_none() {
        let limit = RateLimit {
            bytes: Some(TokenBucket { rate: 10, burst: 10 }),
            operations: Some(TokenBucket { rate: 1, burst: 2 }),
        };
        let mut buckets = Buckets::new(limit);
        assert_eq!(buckets.take(5, Duration::ZERO), Ok(()));
        assert_eq!(buckets.take(6, Duration::ZERO), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take(5, Duration::ZERO), Ok(()));
        assert_eq!(buckets.take(0, Duration::ZERO), Err(Duration::from_secs(1)));
    }

    #[test]
    fn a_rate_of_nothing_never_comes_back() {
        let mut buckets = Buckets::new(bytes(0, 1));
        assert_eq!(buckets.take(1, Duration::ZERO), Ok(()));
        assert_eq!(buckets.take(1, Duration::MAX), Err(Duration::MAX));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        for rate in [1, u64::MAX] {
            for burst in [0, u64::MAX] {
                let mut buckets = Buckets::new(bytes(rate, burst));
                let _ = buckets.take(u64::MAX, Duration::ZERO);
                let _ = buckets.take(u64::MAX, Duration::ZERO);
                let _ = buckets.take(u64::MAX, Duration::MAX);
                let _ = buckets.take(1, Duration::MAX);
            }
        }
    }

    #[test]
    fn the_source_is_readable_when_blocked_work_may_go_on() {
        let mut limiter = RateLimiter::new(Some(bytes(1000, 10))).unwrap();
        assert!(limiter.take(10).unwrap());
        assert!(!limiter.take(10).unwrap());
        assert!(limiter.is_blocked());
        assert_eq!(limiter.source(7).unwrap().token, 7);
        let limited = limiter.0.as_ref().unwrap();
        let mut ready = [PollFd::new(&limited.timer, PollFlags::IN)];
        let deadline = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut ready, Some(&deadline)).unwrap(), 1);
        limiter.expired().unwrap();
        let limited = limiter.0.as_ref().unwrap();
        let mut quiet = [PollFd::new(&limited.timer, PollFlags::IN)];
        assert_eq!(poll(&mut quiet, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap(), 0);
        assert!(limiter.take(10).unwrap());
    }

    #[test]
    fn no_limit_needs_no_timer() {
        for limit in [None, Some(RateLimit::default())] {
            let mut limiter = RateLimiter::new(limit).unwrap();
            assert!(limiter.source(0).is_none());
            assert!(limiter.take(u64::MAX).unwrap());
            limiter.expired().unwrap();
        }
    }

    proptest! {
        /// Every window between two grants: what was taken in it is no more than the limit allows.
        #[test]
        fn never_more_than_the_limit_over_any_window(
            rate in 1u64..1_000_000,
            burst in 0u64..100_000,
            asks in prop::collection::vec((0u64..200_000, 0u64..50_000_000), 1..60),
        ) {
            let mut buckets = Buckets::new(bytes(rate, burst));
            let mut now = Duration::ZERO;
            let mut granted: Vec<(Duration, u64)> = Vec::new();
            for (tokens, pause) in asks {
                now += Duration::from_nanos(pause);
                if buckets.take(tokens, now).is_ok() {
                    granted.push((now, tokens));
                }
            }
            for first in 0..granted.len() {
                let mut taken = 0u128;
                for &(at, tokens) in &granted[first..] {
                    // The last one of a window may overdraw, by what it exceeds the burst.
                    let overdraft = u128::from(tokens.saturating_sub(burst));
                    taken += u128::from(tokens);
                    let window = (at - granted[first].0).as_nanos();
                    let allowed = u128::from(burst) * 1_000_000_000 + u128::from(rate) * window;
                    prop_assert!((taken - overdraft) * 1_000_000_000 <= allowed);
                }
            }
        }

        /// Waiting as long as was said is enough, and not a nanosecond too long.
        #[test]
        fn the_wait_is_exact(
            rate in 1u64..=u64::MAX,
            burst in any::<u64>(),
            first in any::<u64>(),
            second in any::<u64>(),
            start in 0u64..1 << 40,
        ) {
            let mut buckets = Buckets::new(bytes(rate, burst));
            let start = Duration::from_nanos(start);
            prop_assert_eq!(buckets.take(first, start), Ok(()));
            if let Err(wait) = buckets.clone().take(second, start) && wait < Duration::MAX {
                let early = start + wait - Duration::from_nanos(1);
                prop_assert!(buckets.clone().take(second, early).is_err());
                prop_assert_eq!(buckets.take(second, start + wait), Ok(()));
            }
        }

        /// A request passes when each bucket by itself would let it, and then both have paid; else
        /// none has. A clock that is read late does no harm.
        #[test]
        fn two_buckets_are_both_or_neither(
            limits in (0u64..1000, 0u64..1000, 0u64..10, 0u64..10),
            asks in prop::collection::vec((0u64..2000, 0u64..2_000_000_000, any::<bool>()), 1..40),
        ) {
            let limit = |rate, burst| Some(TokenBucket { rate, burst });
            let limit = RateLimit { bytes: limit(limits.0, limits.1), operations: limit(limits.2, limits.3) };
            let mut both = Buckets::new(limit);
            let mut bytes = Buckets::new(RateLimit { operations: None, ..limit });
            let mut operations = Buckets::new(RateLimit { bytes: None, ..limit });
            let mut now = Duration::ZERO;
            for (tokens, pause, late) in asks {
                now += Duration::from_nanos(pause);
                let read = if late { now.saturating_sub(Duration::from_nanos(pause / 2)) } else { now };
                let alone = (bytes.clone().take(tokens, read), operations.clone().take(tokens, read));
                let expected = match alone {
                    (Ok(()), Ok(())) => Ok(()),
                    (one, other) => Err(one.err().unwrap_or_default().max(other.err().unwrap_or_default())),
                };
                prop_assert_eq!(both.take(tokens, read), expected);
                if expected.is_ok() {
                    bytes.take(tokens, read).unwrap();
                    operations.take(tokens, read).unwrap();
                }
            }
        }

        /// Who always waits as long as told gets all that the limit allows.
        #[test]
        fn the_rate_is_reached(
            rate in 1u64..5_000_000_000,
            burst in 1u64..1_000_000,
            share in 1u64..=100,
            requests in 1u64..200,
        ) {
            let tokens = (burst * share / 100).max(1);
            let mut buckets = Buckets::new(bytes(rate, burst));
            let mut now = Duration::ZERO;
            for _ in 0..requests {
                while let Err(wait) = buckets.take(tokens, now) {
                    now += wait;
                }
            }
            // The burst at once, the rest at the rate; what comes to a full bucket is lost, and that is
            // less than a nanosecond's worth for each request, as nobody waits for longer than told.
            let behind = u128::from(tokens * requests).saturating_sub(u128::from(burst));
            let exact = (behind * 1_000_000_000).div_ceil(u128::from(rate));
            prop_assert!((exact..=exact + u128::from(requests)).contains(&now.as_nanos()));
        }
    }
}
