//! A microVM's wall clock, which runs by itself and follows the host's.
//!
//! The agent says the time in messages, and a message takes its time, on a loaded host a second. So
//! what arrives is never early and often late: a clock that is behind the message is behind, while
//! one that is ahead of it may well be right.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use model::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::sys;

/// A clock that is further off than this is set; a closer one is sped up or slowed down, so that no
/// program sees time jump.
const STEP_BEYOND_MS: i64 = 500;
/// What a clock may be off, in milliseconds: about what a message is on its way.
const TOLERANCE_MS: i64 = 5;
/// A clock that was ahead of every message for this long is ahead.
const AHEAD_FOR: Duration = Duration::from_secs(180);

/// What messages have said of the clock.
#[derive(Default)]
pub struct Clock {
    /// Since when it has been ahead of each message, and by how many milliseconds at least.
    ahead: Option<(Instant, i64)>,
}

impl Clock {
    /// Sets the clock of a machine that comes into its own now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set(now: Timestamp) -> Result<()> {
        clock_settime(ClockId::Realtime, timespec(now)).context("set the clock")
    }

    /// Brings the clock back to the host's, from which it drifts.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn follow(&mut self, now: Timestamp) -> Result<()> {
        let ours = clock_gettime(ClockId::Realtime);
        let ours_ms = ours.tv_sec.saturating_mul(1000).saturating_add(ours.tv_nsec / 1_000_000);
        let gain = self.gain(now.0.saturating_sub(ours_ms), Instant::now());
        if gain == 0 {
            Ok(())
        } else if gain.saturating_abs() <= STEP_BEYOND_MS {
            sys::slew_clock(gain * 1000).context("slew the clock")
        } else {
            Self::set(Timestamp(ours_ms.saturating_add(gain)))
        }
    }

    /// By how many milliseconds the clock is to be put forward, when a message says that it is
    /// `behind` by so many.
    fn gain(&mut self, behind: i64, now: Instant) -> i64 {
        if behind >= -TOLERANCE_MS {
            self.ahead = None;
            return if behind > TOLERANCE_MS { behind } else { 0 };
        }
        let ahead = behind.saturating_neg();
        let (since, least) = self.ahead.map_or((now, ahead), |(since, least)| (since, least.min(ahead)));
        if now.saturating_duration_since(since) < AHEAD_FOR {
            self.ahead = Some((since, least));
            return 0;
        }
        self.ahead = None;
        -least
    }
}

fn timespec(at: Timestamp) -> Timespec {
    Timespec { tv_sec: at.0.div_euclid(1000), tv_nsec: at.0.rem_euclid(1000) * 1_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_behind_is_put_forward_at_once() {
        let mut clock = Clock::default();
        let now = Instant::now();
        assert_eq!(clock.gain(TOLERANCE_MS, now), 0);
        assert_eq!(clock.gain(700, now), 700);
        assert_eq!(clock.gain(i64::MAX, now), i64::MAX);
    }

    #[test]
    fn a_late_message_does_not_put_the_clock_back() {
        let mut clock = Clock::default();
        let start = Instant::now();
        for minute in 0..10 {
            let now = start + Duration::from_secs(60 * minute);
            // One message in two is late by a second.
            assert_eq!(clock.gain(if minute % 2 == 0 { -1000 } else { 0 }, now), 0);
        }
    }

    #[test]
    fn a_clock_that_stays_ahead_is_put_back_by_what_it_was_ahead_at_least() {
        let mut clock = Clock::default();
        let start = Instant::now();
        let gains: Vec<_> = [900, 300, 1100, 400, 300]
            .into_iter()
            .enumerate()
            .map(|(minute, ahead)| clock.gain(-ahead, start + AHEAD_FOR / 3 * u32::try_from(minute).unwrap()))
            .collect();
        assert_eq!(gains, [0, 0, 0, -300, 0]);
        assert_eq!(clock.gain(i64::MIN, start + AHEAD_FOR * 10), -300);
    }

    #[test]
    fn times_before_1970_are_times() {
        let times = [1_500, -1].map(|ms| timespec(Timestamp(ms))).map(|at| (at.tv_sec, at.tv_nsec));
        assert_eq!(times, [(1, 500_000_000), (-1, 999_000_000)]);
    }
}
