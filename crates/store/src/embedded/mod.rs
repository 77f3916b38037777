//! The embedded engine: one SQLite file, one writer thread with group commit, readers on snapshots.
//!
//! ```text
//! commit ─▶ queue ─▶ writer: guards and writes of many transactions ─▶ one fsync ─▶ history ─▶ replies
//! get, range ─▶ a pooled connection's snapshot (write-ahead log: never blocked by the writer)
//! ```
//!
//! SQLite shows a commit to readers only after its log frames are synced, so no reader and no watch sees
//! what a crash could take back.

mod apply;
mod fault;
mod file;
mod leases;
mod reader;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use crate::history::History;
use crate::{CommitError, Error, KeyValue, LeaseId, Range, RangeResult, Revision, Txn, Watch};
use apply::{Outcome, Work};
use fault::Fault;
use leases::Leases;
use reader::Readers;
use writer::{Request, Writer};

/// The most bytes of transactions that wait for the writer; further commits wait in their callers.
const QUEUE_BYTES: u32 = 64 << 20;
/// What a queued transaction costs beside its keys and values.
const REQUEST_BYTES: usize = 256;

const LONGEST_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Debug)]
pub(crate) struct Embedded {
    path: PathBuf,
    readers: Readers,
    leases: Arc<Leases>,
    history: Arc<History>,
    queue_room: Arc<Semaphore>,
    /// `None` only while it is dropped.
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    pub(crate) fn open(path: &Path) -> Result<Embedded, Error> {
        let conn = file::open(path)?;
        let (revision, leases) = load(&conn).map_err(|fault| fault.on(path))?;
        let leases = Arc::new(Leases::new(leases));
        let history = Arc::new(History::starting_after(revision.0));
        let readers = Readers::new(path)?;
        let (queue, requests) = mpsc::channel();
        let writer = Writer::new(path, conn, Arc::clone(&leases), Arc::clone(&history));
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&requests))
            .map_err(|source| file::io_error("start the writer thread for", path, source))?;
        Ok(Embedded {
            path: path.to_owned(),
            readers,
            leases,
            history,
            queue_room: Arc::new(Semaphore::new(QUEUE_BYTES as usize)),
            queue: Some(queue),
            writer: Some(writer),
        })
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.readers.get(key)
    }

    pub(crate) fn revision(&self) -> Result<Revision, Error> {
        self.readers.revision()
    }

    pub(crate) async fn range(self: &Arc<Self>, range: Range) -> Result<RangeResult, Error> {
        let read = self.readers.range(range)?;
        if read.is_complete() {
            return self.readers.finish(read);
        }
        let this = Arc::clone(self);
        off_the_runtime(move || this.readers.finish(read)).await
    }

    pub(crate) fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        Watch::embedded(Arc::clone(&self.history), prefix, after)
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        match self.request(Work::Commit(txn)).await? {
            Outcome::Done(revision) => Ok(revision),
            Outcome::Conflict { key } => Err(CommitError::Conflict { key }),
            Outcome::NoLease(lease) => Err(Error::LeaseNotFound(lease).into()),
        }
    }

    pub(crate) async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        if ttl.is_zero() || ttl > LONGEST_TTL {
            return Err(Error::InvalidTtl);
        }
        // Rounded up to what is stored.
        let ttl = Duration::from_millis(ttl.as_nanos().div_ceil(1_000_000) as u64);
        // Random, as etcd's: 63 bits do not collide.
        let lease = LeaseId(rand::random::<u64>() >> 1);
        self.request(Work::Grant { lease, ttl }).await?;
        Ok(lease)
    }

    pub(crate) fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        self.leases.keep_alive(lease).ok_or(Error::LeaseNotFound(lease))
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<Revision, Error> {
        match self.request(Work::End(lease)).await? {
            Outcome::Done(revision) => Ok(revision),
            _ => Err(Error::LeaseNotFound(lease)),
        }
    }

    pub(crate) async fn backup(self: &Arc<Self>, to: &Path) -> Result<(), Error> {
        let to = to.to_owned();
        let this = Arc::clone(self);
        off_the_runtime(move || this.copy(&to)).await
    }

    fn copy(&self, to: &Path) -> Result<(), Error> {
        if file::exists(to)? {
            let taken = std::io::ErrorKind::AlreadyExists.into();
            return Err(file::io_error("create", to, taken));
        }
        let draft = file::beside(to, &format!(".new-{:016x}", rand::random::<u64>()));
        let _cleanup = file::RemoveOnDrop(&draft);
        file::create_private(&draft)?;
        let vacuum = || -> Result<(), Fault> {
            let conn = file::open_reader(&self.path)?;
            // VACUUM INTO counts as a write, though it writes another file.
            conn.pragma_update(None, "query_only", false)?;
            let name = draft.to_str().ok_or(rusqlite::Error::InvalidPath(draft.clone()))?;
            conn.execute("VACUUM INTO ?1", [name])?;
            Ok(())
        };
        vacuum().map_err(|fault| {
            let on = if fault.is_no_space() { to } else { &self.path };
            fault.on(on)
        })?;
        file::publish(&draft, to)
    }

    /// Has the writer do `work` and waits for its durable outcome.
    async fn request(&self, work: Work) -> Result<Outcome, Error> {
        let bytes = u32::try_from(work.bytes() + REQUEST_BYTES).unwrap_or(QUEUE_BYTES);
        let room = Arc::clone(&self.queue_room)
            .acquire_many_owned(bytes.min(QUEUE_BYTES))
            .await
            .map_err(|_| Error::Closed)?;
        let (reply, outcome) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(Error::Closed)?;
        queue.send(Request::new(work, reply, room)).map_err(|_| Error::Closed)?;
        outcome.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // The writer does what is queued, then sees that there is no more.
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the store's writer thread panicked");
        }
    }
}

fn load(conn: &Connection) -> Result<(Revision, Vec<(LeaseId, Duration)>), Fault> {
    let revision = reader::current_revision(conn)?;
    let mut statement = conn.prepare("SELECT id, ttl_ms FROM lease")?;
    let leases = statement
        .query_map([], |row| {
            let ttl = Duration::from_millis(reader::unsigned(row, 1)?);
            Ok((LeaseId(reader::unsigned(row, 0)?), ttl))
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok((revision, leases))
}

/// Runs what takes long on a blocking thread, or here if there is no tokio runtime to disturb.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => match runtime.spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(Error::Closed),
            },
        },
        Err(_) => work(),
    }
}
