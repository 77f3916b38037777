//! When health checks run, and what their results mean.
//!
//! Source: "HealthCheck" in the ECS API reference, and Docker's HEALTHCHECK, whose engine Fargate
//! shares: the first check comes one interval after the start; `retries` failures in a row make a
//! container unhealthy; failures in the start period do not count, a success ends it.

use std::time::{Duration, Instant};

use model::HealthStatus;
use model::spec::HealthCheck;

/// The health of one run of a container.
pub struct Health {
    check: HealthCheck,
    started: Instant,
    next: Instant,
    /// Since when a check runs.
    running: Option<Instant>,
    failures: u32,
    ever_passed: bool,
    pub status: HealthStatus,
}

impl Health {
    pub fn new(check: HealthCheck, now: Instant) -> Self {
        let next = now + Duration::from_secs(check.interval_secs.into());
        Self {
            check,
            started: now,
            next,
            running: None,
            failures: 0,
            ever_passed: false,
            status: HealthStatus::Unknown,
        }
    }

    pub fn command(&self) -> &[String] {
        &self.check.command
    }

    /// When something has to be done: a check begins or runs out of time.
    pub fn deadline(&self) -> Instant {
        match self.running {
            Some(since) => since + Duration::from_secs(self.check.timeout_secs.into()),
            None => self.next,
        }
    }

    /// Whether a check shall begin now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.running.is_none() && now >= self.next
    }

    /// Whether the running check shall be killed.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.running.is_some() && now >= self.deadline()
    }

    pub fn begin(&mut self, now: Instant) {
        self.running = Some(now);
    }

    /// A check ended; `passed` when its exit code was 0 and it was in time. Returns whether the
    /// status changed.
    pub fn finish(&mut self, passed: bool, now: Instant) -> bool {
        self.running = None;
        self.next = now + Duration::from_secs(self.check.interval_secs.into());
        let before = self.status;
        let start_period = Duration::from_secs(self.check.start_period_secs.into());
        if passed {
            self.failures = 0;
            self.ever_passed = true;
            self.status = HealthStatus::Healthy;
        } else if self.ever_passed || now >= self.started + start_period {
            self.failures += 1;
            if self.failures >= self.check.retries.max(1) {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.status != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(start_period_secs: u32) -> (Health, Instant) {
        let check = HealthCheck {
            command: vec![],
            interval_secs: 30,
            timeout_secs: 5,
            retries: 3,
            start_period_secs,
        };
        let now = Instant::now();
        (Health::new(check, now), now)
    }

    #[test]
    fn retries_in_a_row_make_unhealthy_and_one_success_heals() {
        let (mut health, start) = health(0);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!health.is_due(at(29)) && health.is_due(at(30)));
        health.begin(at(30));
        assert!(!health.is_due(at(99)) && !health.is_overdue(at(34)) && health.is_overdue(at(35)));
        assert!(!health.finish(false, at(35)));
        assert!(!health.finish(false, at(70)));
        assert!(health.finish(false, at(100)));
        assert_eq!(health.status, HealthStatus::Unhealthy);
        assert!(health.finish(true, at(130)));
        assert_eq!(health.status, HealthStatus::Healthy);
        assert!(!health.finish(false, at(160)) && !health.finish(false, at(190)));
        assert_eq!(health.status, HealthStatus::Healthy);
    }

    #[test]
    fn the_start_period_forgives_until_the_first_success() {
        let (mut health, start) = health(100);
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [10, 20, 30, 40] {
            assert!(!health.finish(false, at(seconds)));
        }
        health.finish(true, at(50));
        health.finish(false, at(60));
        health.finish(false, at(70));
        health.finish(false, at(80));
        assert_eq!(health.status, HealthStatus::Unhealthy);
    }
}
