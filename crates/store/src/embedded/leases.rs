//! When leases end. The engine's file holds only that they exist and for how long; the deadlines are here, on the
//! monotonic clock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::LeaseId;

/// How soon to try again to end a lease whose keys could not be deleted (disk full).
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Leases {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    leases: HashMap<LeaseId, Lease>,
    /// No deadline is earlier. (It is not moved when the earliest lease is kept alive.)
    earliest: Option<Instant>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    /// Past its deadline and to be deleted: it cannot be kept alive any more.
    ending: bool,
}

impl Leases {
    /// All with their whole time before them.
    pub(super) fn new(leases: impl IntoIterator<Item = (LeaseId, Duration)>) -> Leases {
        let this = Leases { state: Mutex::default() };
        for (id, ttl) in leases {
            this.insert(id, ttl);
        }
        this
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, id: LeaseId, ttl: Duration) {
        let deadline = Instant::now() + ttl;
        let mut state = self.lock();
        state.leases.insert(id, Lease { ttl, deadline, ending: false });
        state.expect(deadline);
    }

    /// Starts the lease's time again; `None` if there is no such lease or it is ending.
    pub(super) fn keep_alive(&self, id: LeaseId) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        let lease = state.leases.get_mut(&id)?;
        // Also what the writer has not come to yet: a lease that was late once is never revived.
        if lease.ending || lease.deadline <= now {
            return None;
        }
        lease.deadline = now + lease.ttl;
        Some(lease.ttl)
    }

    pub(super) fn remove(&self, id: LeaseId) {
        self.lock().leases.remove(&id);
    }

    /// When to call [`end_due`](Leases::end_due) next, at the latest.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.lock().earliest
    }

    /// The leases past their deadline, which from now on are ending.
    pub(super) fn end_due(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.earliest.is_none_or(|earliest| now < earliest) {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut earliest = None;
        for (id, lease) in &mut state.leases {
            if lease.deadline <= now {
                lease.ending = true;
                lease.deadline = now + RETRY;
                due.push(*id);
            }
            if earliest.is_none_or(|earliest| lease.deadline < earliest) {
                earliest = Some(lease.deadline);
            }
        }
        state.earliest = earliest;
        due
    }
}

impl State {
    fn expect(&mut self, deadline: Instant) {
        if self.earliest.is_none_or(|earliest| deadline < earliest) {
            self.earliest = Some(deadline);
        }
    }
}
