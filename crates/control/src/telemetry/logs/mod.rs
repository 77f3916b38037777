//! The log store: groups, streams and events, durable when a write returns, searchable at once.
//!
//! It lies on an embedded LSM tree (fjall). All writes go through one thread that groups them into
//! commits ([`writer`]); reads take a snapshot and run beside it. What a request may take of memory
//! and disk reads is bounded, however much a group holds: [`read`] says how.

mod append;
mod clear;
mod error;
mod groups;
mod keys;
pub mod limits;
mod read;
mod record;
mod streams;
mod sweep;
mod tail;
mod token;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::sync::Semaphore;

pub use append::{Appended, Cursor, Event};
pub use error::LogError;
pub use groups::{GroupPage, GroupQuery, LogGroup, NamePattern, NewGroup};
pub use read::{FilterPage, FilterQuery, FilteredEvent, GetPage, GetQuery, PAGE_EVENTS, StoredEvent};
pub use streams::{LogStream, StreamOrder, StreamPage, StreamQuery};
pub use sweep::Swept;
pub use tail::{TailEvent, TailFilter, TailSession, TailUpdate};

use crate::clock::Clock;
use crate::keys::Scope;
use record::{GroupRecord, StreamRecord};
use token::Tokens;
use writer::{Loop, Writer};

pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Tags that a group can have (`Tags` in the service model).
pub(crate) const MAX_TAGS: usize = 50;

/// The layout of keys and records; another one refuses to open.
const FORMAT: &[u8] = b"1";

/// Reads that may run at once; each holds a blocking thread and up to a page of events.
const CONCURRENT_READS: usize = 8;

/// Where logs are kept. Clones share one store, which closes with the last of them.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    db: Database,
    meta: Keyspace,
    events: Keyspace,
    clock: Clock,
    tokens: Tokens,
    hub: Arc<tail::Hub>,
    reads: Arc<Semaphore>,
    /// `None` only while closing.
    writer: Option<Writer>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").finish_non_exhaustive()
    }
}

impl LogStore {
    /// Opens the store in `dir`, which it makes when missing. One process at a time.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, or holds another format.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, LogError> {
        let io = |error| LogError::Open(Arc::new(error));
        std::fs::create_dir_all(dir).map_err(io)?;
        let db = Database::builder(dir)
            .cache_size(16 << 20)
            .max_journaling_size(64 << 20)
            // One may be busy with a compaction for long while a full memtable waits for the other.
            .worker_threads(2)
            .open()?;
        // Small memtables: they are most of the store's resident memory, and up to five of a keyspace
        // are there at once under load.
        let meta = db.keyspace("meta", || KeyspaceCreateOptions::default().max_memtable_size(4 << 20))?;
        let events = db.keyspace("events", || KeyspaceCreateOptions::default().max_memtable_size(8 << 20))?;
        let (secret, next_id) = Self::prepare(&db, &meta)?;

        let (hub, tail_thread) = tail::Hub::start().map_err(io)?;
        let (writer, write_thread) = Loop {
            dir: dir.to_owned(),
            db: db.clone(),
            meta: meta.clone(),
            events: events.clone(),
            clock: clock.clone(),
            hub: Arc::clone(&hub),
            next_id,
            reserved: next_id,
        }
        .start()
        .map_err(io)?;
        Ok(Self {
            inner: Arc::new(Inner {
                db,
                meta,
                events,
                clock,
                tokens: Tokens::new(&secret),
                hub,
                reads: Arc::new(Semaphore::new(CONCURRENT_READS)),
                writer: Some(writer),
                threads: Mutex::new(vec![write_thread, tail_thread]),
            }),
        })
    }

    /// Checks the format, makes the token key at first, and reads the first id that is free.
    fn prepare(db: &Database, meta: &Keyspace) -> Result<(Vec<u8>, u64), LogError> {
        match meta.get(keys::FORMAT)? {
            Some(format) if *format == *FORMAT => {}
            Some(_) => return Err(LogError::Corrupt("format of another version")),
            None => {
                let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(meta, keys::FORMAT, FORMAT);
                batch.insert(meta, keys::TOKEN_SECRET, rand::random::<[u8; 32]>());
                batch.insert(meta, keys::SEQUENCE, 1_u64.to_be_bytes());
                batch.commit()?;
            }
        }
        let secret = meta.get(keys::TOKEN_SECRET)?.ok_or(LogError::Corrupt("token key"))?;
        let next = meta.get(keys::SEQUENCE)?.ok_or(LogError::Corrupt("id sequence"))?;
        Ok((secret.to_vec(), keys::number(&next)?))
    }

    /// See [`Writer::write`].
    async fn write<T, F>(&self, weight: usize, alone: bool, change: F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: FnOnce(&mut writer::Transaction<'_>) -> Result<T, LogError> + Send + 'static,
    {
        let writer = self.inner.writer.as_ref().ok_or(LogError::Stopped)?;
        writer.write(weight, alone, change).await
    }

    /// Runs `read` on a thread that may block, a bounded number at once.
    async fn read<T, F>(&self, read: F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T, LogError> + Send + 'static,
    {
        let permit = Arc::clone(&self.inner.reads).acquire_owned().await.map_err(|_| LogError::Stopped)?;
        let inner = Arc::clone(&self.inner);
        let task = tokio::task::spawn_blocking(move || {
            let outcome = read(&inner);
            drop(permit);
            outcome
        });
        task.await.map_err(|_| LogError::Stopped)?
    }
}

impl Inner {
    fn group(&self, scope: &Scope, name: &str) -> Result<GroupRecord, LogError> {
        let record = self.meta.get(keys::group(scope, name))?.ok_or(LogError::GroupNotFound)?;
        record::decode(&record, "group")
    }

    fn stream(&self, group: keys::GroupId, name: &str) -> Result<StreamRecord, LogError> {
        let record = self.meta.get(keys::stream(group, name))?.ok_or(LogError::StreamNotFound)?;
        record::decode(&record, "stream")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer's thread ends with its queue, and the tail's with the writer.
        self.writer = None;
        self.hub.stop();
        if let Ok(mut threads) = self.threads.lock() {
            for thread in threads.drain(..) {
                if thread.join().is_err() {
                    tracing::error!("a thread of the log store panicked");
                }
            }
        }
    }
}
