//! The one thread that writes. Changes that wait while a commit is synced to disk go together into
//! the next commit, so the number of syncs follows the disk, not the number of callers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use fjall::{Database, Keyspace, PersistMode};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::LogError;
use super::keys;
use super::tail::{Hub, TailEvent};
use crate::clock::Clock;

/// A commit takes no further change when it holds this many bytes.
const COMMIT_BYTES: usize = 4 << 20;

/// Changes that may wait; more callers wait outside.
const QUEUE: usize = 1024;

/// Bytes of events in all waiting changes.
const QUEUE_BYTES: u32 = 32 << 20;

/// Ids are reserved on disk in blocks of this many.
const ID_BLOCK: u64 = 1 << 20;

/// Nothing is added while less than this is free on the disk: a journal that cannot grow poisons the
/// database until restart, and compaction needs room to give room back.
const DISK_RESERVE: u64 = 64 << 20;

/// A key's new value; `None` removes it.
type Change = Option<Vec<u8>>;

/// The queue's end that callers hold.
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

struct Job {
    /// Must not share a commit with changes before it: it scans, and scans see only what is committed.
    alone: bool,
    run: Box<dyn FnOnce(&mut Transaction<'_>) -> Done + Send>,
}

/// Tells the caller, after the commit that its change went into.
type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

impl Writer {
    /// Runs `change` in a transaction and returns once it is on disk. An error that `change` returns
    /// undoes what it wrote. `weight` is the bytes of events that it carries.
    pub async fn write<T, F>(&self, weight: usize, alone: bool, change: F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, LogError> + Send + 'static,
    {
        let weight = u32::try_from(weight).unwrap_or(u32::MAX).min(QUEUE_BYTES);
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(weight).await.map_err(|_| LogError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |tx: &mut Transaction<'_>| -> Done {
            let outcome = tx.attempt(change);
            Box::new(move |committed| {
                drop(room);
                // The caller may have gone; the change stands.
                let _ = reply.send(committed.and(outcome));
            })
        });
        self.jobs.send(Job { alone, run }).await.map_err(|_| LogError::Stopped)?;
        answer.await.map_err(|_| LogError::Stopped)?
    }
}

/// What the writing thread owns.
pub(super) struct Loop {
    pub dir: PathBuf,
    pub db: Database,
    pub meta: Keyspace,
    pub events: Keyspace,
    pub clock: Clock,
    pub hub: Arc<Hub>,
    /// The next id to give out, and the first that is not reserved on disk.
    pub next_id: u64,
    pub reserved: u64,
}

impl Loop {
    /// Starts the thread. It ends when the returned [`Writer`] is dropped.
    pub fn start(self) -> std::io::Result<(Writer, std::thread::JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("log-writer".into()).spawn(move || self.run(queue))?;
        Ok((Writer { jobs, room: Arc::new(Semaphore::new(QUEUE_BYTES as usize)) }, thread))
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| queue.blocking_recv()) {
            let now = self.clock.now().millis();
            let mut tx = Transaction::new(&self.meta, self.hub.has_sessions(), self.next_id, now);
            tx.full = free_space(&self.dir).is_some_and(|free| free < DISK_RESERVE);
            let mut done = vec![(job.run)(&mut tx)];
            while !job.alone && tx.bytes < COMMIT_BYTES {
                match queue.try_recv() {
                    Ok(job) if job.alone => {
                        next = Some(job);
                        break;
                    }
                    Ok(job) => done.push((job.run)(&mut tx)),
                    Err(_) => break,
                }
            }
            let Transaction { records, events, published, next_id, .. } = tx;
            let committed = self.commit(records, events, next_id);
            if committed.is_ok() {
                self.hub.publish(published);
            }
            for done in done {
                done(committed.clone());
            }
        }
    }

    fn commit(
        &mut self,
        records: HashMap<Vec<u8>, Change>,
        events: Vec<(Vec<u8>, Change)>,
        next_id: u64,
    ) -> Result<(), LogError> {
        if records.is_empty() && events.is_empty() {
            return Ok(());
        }
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        let mut reserved = self.reserved;
        if next_id > reserved {
            reserved = next_id.saturating_add(ID_BLOCK);
            batch.insert(&self.meta, keys::SEQUENCE, reserved.to_be_bytes());
        }
        let records = records.into_iter().map(|change| (&self.meta, change));
        let events = events.into_iter().map(|change| (&self.events, change));
        for (keyspace, (key, value)) in records.chain(events) {
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit()?;
        self.reserved = reserved;
        self.next_id = next_id;
        Ok(())
    }
}

/// Free bytes for us on the disk of `dir`; `None` when it cannot be asked.
fn free_space(dir: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Changes on their way into one commit. Reads see the records changed in it.
pub(super) struct Transaction<'a> {
    meta: &'a Keyspace,
    pub now: i64,
    /// Whether the disk has too little room for what is new.
    full: bool,
    /// Whether anyone tails, so that appended events need be kept for them.
    tailed: bool,
    /// Changed records. A map: a batch must not hold a key twice.
    records: HashMap<Vec<u8>, Change>,
    events: Vec<(Vec<u8>, Change)>,
    published: Vec<TailEvent>,
    next_id: u64,
    bytes: usize,
    /// What the present change replaced in `records`, latest last.
    undo: Vec<(Vec<u8>, Option<Change>)>,
}

impl<'a> Transaction<'a> {
    fn new(meta: &'a Keyspace, tailed: bool, next_id: u64, now: i64) -> Self {
        Self {
            meta,
            now,
            full: false,
            tailed,
            records: HashMap::new(),
            events: Vec::new(),
            published: Vec::new(),
            next_id,
            bytes: 0,
            undo: Vec::new(),
        }
    }

    /// Runs `change`; when it fails, nothing of it stays.
    fn attempt<T>(
        &mut self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let (events, published) = (self.events.len(), self.published.len());
        self.undo.clear();
        let outcome = change(self);
        if outcome.is_err() {
            self.events.truncate(events);
            self.published.truncate(published);
            while let Some((key, previous)) = self.undo.pop() {
                match previous {
                    Some(value) => self.records.insert(key, value),
                    None => self.records.remove(&key),
                };
            }
        }
        outcome
    }

    /// Refuses a change that adds to the store while the disk is full; changes that lead to room do not
    /// ask.
    pub fn require_room(&self) -> Result<(), LogError> {
        if self.full { Err(LogError::DiskFull) } else { Ok(()) }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, LogError> {
        match self.records.get(key) {
            Some(value) => Ok(value.clone()),
            None => Ok(self.meta.get(key)?.map(|value| value.to_vec())),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.change(key, Some(value));
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.change(key, None);
    }

    fn change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        let previous = self.records.insert(key.clone(), value);
        self.undo.push((key, previous));
    }

    /// The key must be new: it holds an [`Self::id`].
    pub fn put_event(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.events.push((key, Some(value)));
    }

    pub fn remove_event(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.events.push((key, None));
    }

    /// Hands `event` to whoever tails, once it is on disk.
    pub fn publish(&mut self, event: impl FnOnce() -> TailEvent) {
        if self.tailed {
            self.published.push(event());
        }
    }

    /// A number that this store never gave out before.
    pub fn id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}
