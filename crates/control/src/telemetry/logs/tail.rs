//! Watching events as they are stored (`StartLiveTail`).
//!
//! The writer hands what it committed to a thread of its own, which matches it against the sessions:
//! a slow pattern or a slow client never delays a write. What does not fit is dropped, and the session
//! is told that its view is sampled.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::keys::GroupId;
use super::{LogError, LogStore};
use crate::keys::Scope;
use crate::telemetry::filter::FilterPattern;

/// Sessions at once of one account and region ("Live Tail" in the service quotas).
pub(super) const MAX_SESSIONS: usize = 15;

/// Events that a session holds between two updates ("up to 500 log events" each).
const UPDATE_EVENTS: usize = 500;

/// Bytes of their messages.
const UPDATE_BYTES: usize = 2 << 20;

/// Bytes of messages that wait to be matched.
const QUEUE_BYTES: usize = 16 << 20;

/// An event just stored. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailEvent {
    pub(super) group_id: GroupId,
    pub group: Arc<str>,
    pub stream: Arc<str>,
    pub timestamp: i64,
    pub ingested_at: i64,
    pub message: String,
}

/// Which events of its groups a session sees.
#[derive(Debug)]
pub struct TailFilter {
    /// Exactly these streams, or those that begin with one of `prefixes`; all when both are empty.
    pub streams: Vec<String>,
    pub prefixes: Vec<String>,
    pub pattern: FilterPattern,
}

impl TailFilter {
    fn admits(&self, event: &TailEvent) -> bool {
        let named = self.streams.iter().any(|name| **name == *event.stream)
            || self.prefixes.iter().any(|prefix| event.stream.starts_with(prefix.as_str()));
        (named || (self.streams.is_empty() && self.prefixes.is_empty()))
            && self.pattern.matches(&event.message)
    }
}

/// What a session saw since its last update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailUpdate {
    pub events: Vec<TailEvent>,
    /// Whether there were more.
    pub sampled: bool,
}

/// A session; it ends when dropped.
pub struct TailSession {
    session: Arc<Session>,
    hub: Arc<Hub>,
}

impl std::fmt::Debug for TailSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TailSession").finish_non_exhaustive()
    }
}

impl TailSession {
    /// Takes what came since the last call: at most 500 events.
    #[must_use]
    pub fn update(&self) -> TailUpdate {
        let mut buffer = lock(&self.session.buffer);
        buffer.bytes = 0;
        std::mem::take(&mut buffer.update)
    }

    /// Waits until [`Self::update`] has something.
    pub async fn ready(&self) {
        loop {
            let notified = self.session.arrived.notified();
            {
                let buffer = lock(&self.session.buffer);
                if !buffer.update.events.is_empty() || buffer.update.sampled {
                    return;
                }
            }
            notified.await;
        }
    }
}

impl Drop for TailSession {
    fn drop(&mut self) {
        lock(&self.hub.sessions).retain(|other| !Arc::ptr_eq(other, &self.session));
    }
}

impl LogStore {
    /// Watches groups from now on.
    ///
    /// # Errors
    /// `GroupNotFound`, `TooManySessions`.
    pub async fn subscribe(
        &self,
        scope: &Scope,
        groups: &[String],
        filter: TailFilter,
    ) -> Result<TailSession, LogError> {
        let (scope, groups) = (scope.clone(), groups.to_vec());
        self.read(move |inner| {
            let groups = groups.iter().map(|name| Ok(inner.group(&scope, name)?.id));
            let groups = groups.collect::<Result<HashSet<_>, LogError>>()?;
            let session =
                Arc::new(Session { scope, groups, filter, buffer: Mutex::default(), arrived: Notify::new() });
            let mut sessions = lock(&inner.hub.sessions);
            if sessions.iter().filter(|other| other.scope == session.scope).count() >= MAX_SESSIONS {
                return Err(LogError::TooManySessions);
            }
            sessions.push(Arc::clone(&session));
            drop(sessions);
            Ok(TailSession { session, hub: Arc::clone(&inner.hub) })
        })
        .await
    }
}

struct Session {
    scope: Scope,
    groups: HashSet<GroupId>,
    filter: TailFilter,
    buffer: Mutex<Buffer>,
    arrived: Notify,
}

#[derive(Default)]
struct Buffer {
    update: TailUpdate,
    bytes: usize,
}

impl Session {
    fn offer(&self, event: &TailEvent) {
        if !self.groups.contains(&event.group_id) {
            return;
        }
        {
            // A full session need not match: the event is dropped either way.
            let buffer = lock(&self.buffer);
            if buffer.update.events.len() >= UPDATE_EVENTS && buffer.update.sampled {
                return;
            }
        }
        if !self.filter.admits(event) {
            return;
        }
        let mut buffer = lock(&self.buffer);
        let size = event.message.len();
        if buffer.update.events.len() >= UPDATE_EVENTS || buffer.bytes + size > UPDATE_BYTES {
            buffer.update.sampled = true;
        } else {
            buffer.bytes += size;
            buffer.update.events.push(event.clone());
        }
        drop(buffer);
        self.arrived.notify_waiters();
    }
}

/// The sessions, and the way to the thread that serves them.
pub(super) struct Hub {
    sessions: Mutex<Vec<Arc<Session>>>,
    queue: Mutex<Option<mpsc::Sender<Vec<TailEvent>>>>,
    queued_bytes: AtomicUsize,
}

impl Hub {
    pub fn start() -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let (sender, receiver) = mpsc::channel();
        let hub = Arc::new(Self {
            sessions: Mutex::default(),
            queue: Mutex::new(Some(sender)),
            queued_bytes: AtomicUsize::new(0),
        });
        let of_thread = Arc::clone(&hub);
        let thread =
            std::thread::Builder::new().name("log-tail".into()).spawn(move || of_thread.run(&receiver))?;
        Ok((hub, thread))
    }

    /// Lets the thread end.
    pub fn stop(&self) {
        *lock(&self.queue) = None;
    }

    pub fn has_sessions(&self) -> bool {
        !lock(&self.sessions).is_empty()
    }

    /// Hands over committed events; never waits.
    pub fn publish(&self, events: Vec<TailEvent>) {
        if events.is_empty() {
            return;
        }
        let bytes = weight(&events);
        if self.queued_bytes.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            self.mark_sampled(&events);
            return;
        }
        if let Some(queue) = lock(&self.queue).as_ref() {
            self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
            // The thread ends only with the queue.
            let _ = queue.send(events);
        }
    }

    fn mark_sampled(&self, events: &[TailEvent]) {
        let groups: HashSet<GroupId> = events.iter().map(|event| event.group_id).collect();
        for session in lock(&self.sessions).iter() {
            if !session.groups.is_disjoint(&groups) {
                lock(&session.buffer).update.sampled = true;
                session.arrived.notify_waiters();
            }
        }
    }

    fn run(&self, queue: &mpsc::Receiver<Vec<TailEvent>>) {
        while let Ok(events) = queue.recv() {
            let sessions = lock(&self.sessions).clone();
            for event in &events {
                for session in &sessions {
                    session.offer(event);
                }
            }
            self.queued_bytes.fetch_sub(weight(&events), Ordering::Relaxed);
        }
    }
}

fn weight(events: &[TailEvent]) -> usize {
    events.iter().map(|event| event.message.len() + size_of::<TailEvent>()).sum()
}

/// No code panics while it holds one of these locks, so a poisoned one is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
