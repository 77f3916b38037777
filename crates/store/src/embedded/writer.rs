//! The one thread that writes: it takes what is queued as a batch, and gives the batch one fsync.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::apply::{Outcome, Work, apply};
use super::fault::Fault;
use super::leases::Leases;
use super::reader;
use crate::history::{Committed, History};
use crate::{Error, LeaseId, Revision};

/// The most requests, and bytes of them, in a batch: it is what can fail together, and what the first in it
/// waits for.
const BATCH_REQUESTS: usize = 512;
const BATCH_BYTES: usize = 4 << 20;

/// Copy the log into the file when so many bytes were committed since: as soon as nothing is queued, or
/// at the latest after the second number (then commits wait for it).
const CHECKPOINT_WHEN_IDLE: usize = 4 << 20;
const CHECKPOINT_AT_LATEST: usize = 24 << 20;
/// What a write adds to the log besides its value: the pages of table and index that it touches.
const LOG_BYTES_PER_WRITE: usize = 8 << 10;

type Reply = oneshot::Sender<Result<Outcome, Error>>;

pub(super) struct Request {
    work: Work,
    /// `None` for what the writer asks of itself.
    reply: Option<Reply>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Request {
    pub(super) fn new(work: Work, reply: Reply, room: OwnedSemaphorePermit) -> Request {
        Request { work, reply: Some(reply), _room: Some(room) }
    }

    fn end_of(lease: LeaseId) -> Request {
        Request { work: Work::End(lease), reply: None, _room: None }
    }
}

pub(super) struct Writer {
    path: PathBuf,
    conn: Connection,
    leases: Arc<Leases>,
    history: CloseOnDrop,
    /// Estimated, since the last checkpoint.
    log_bytes: usize,
}

/// Also when the writer panics, watches have to learn that there will be no more events.
struct CloseOnDrop(Arc<History>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a batch did, once it is durable.
struct Done {
    outcomes: Vec<Outcome>,
    log_bytes: usize,
}

impl Writer {
    pub(super) fn new(path: &Path, conn: Connection, leases: Arc<Leases>, history: Arc<History>) -> Writer {
        Writer { path: path.to_owned(), conn, leases, history: CloseOnDrop(history), log_bytes: 0 }
    }

    /// Until the last sender is gone and its requests are done.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let first = match self.leases.earliest() {
                None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => requests.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            // Leases first: what was queued after their end must not find them alive.
            let mut batch: Vec<Request> = self.leases.end_due().into_iter().map(Request::end_of).collect();
            let mut idle = true;
            match first {
                Ok(first) => {
                    batch.push(first);
                    idle = gather(&mut batch, requests);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !batch.is_empty() {
                self.commit(batch);
            }
            self.checkpoint_if_due(idle);
        }
    }

    fn commit(&mut self, batch: Vec<Request>) {
        match self.try_commit(&batch) {
            Ok(done) => self.settle(batch, done),
            // The wait for the lock has already been long; each alone would wait as long again.
            Err(fault) if fault.is_busy() => self.fail(batch, &fault),
            Err(fault) if batch.len() == 1 && !fault.is_no_space() => self.fail(batch, &fault),
            Err(fault) => {
                if fault.is_no_space() {
                    // The log can be used again from its start once all of it is in the file.
                    self.checkpoint("TRUNCATE");
                }
                // One of them may be to blame (too large for what space is left): each for itself.
                for request in batch {
                    let alone = vec![request];
                    match self.try_commit(&alone) {
                        Ok(done) => self.settle(alone, done),
                        Err(fault) => self.fail(alone, &fault),
                    }
                }
            }
        }
    }

    /// One SQLite transaction for the whole batch. Each request's guards see what those before it wrote. On
    /// an error nothing of the batch has happened.
    fn try_commit(&mut self, batch: &[Request]) -> Result<Done, Fault> {
        if !self.conn.is_autocommit() {
            // A rollback failed before, because of the disk.
            self.conn.execute_batch("ROLLBACK")?;
        }
        let txn = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // From the file, not from memory: should another process write too, revisions stay unique.
        let before = reader::current_revision(&txn)?;
        let mut revision = before;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut committed = Vec::new();
        let mut log_bytes = 0;
        for request in batch {
            let mut events = Vec::new();
            outcomes.push(apply(&txn, &request.work, revision, &mut events)?);
            if !events.is_empty() {
                revision = Revision(revision.0 + 1);
                log_bytes += request.work.bytes() + events.len() * LOG_BYTES_PER_WRITE;
                committed.push(Committed { revision: revision.0, events });
            }
        }
        if revision != before {
            txn.prepare_cached("UPDATE state SET revision = ?1")?.execute([revision.0 as i64])?;
        }
        txn.commit()?;

        if self.history.0.last() != before.0 {
            tracing::warn!(path = %self.path.display(), "another process writes to the state");
            self.history.0.restart(before.0);
        }
        self.history.0.publish(committed);
        Ok(Done { outcomes, log_bytes })
    }

    fn settle(&mut self, batch: Vec<Request>, done: Done) {
        self.log_bytes += done.log_bytes;
        for (request, outcome) in batch.into_iter().zip(done.outcomes) {
            match &request.work {
                Work::Commit(_) => {}
                Work::Grant { lease, ttl } => self.leases.insert(*lease, *ttl),
                Work::End(lease) => self.leases.remove(*lease),
            }
            if let Some(reply) = request.reply {
                // The caller may have gone.
                let _ = reply.send(Ok(outcome));
            }
        }
    }

    fn fail(&self, batch: Vec<Request>, fault: &Fault) {
        for request in batch {
            match (request.reply, &request.work) {
                (Some(reply), _) => {
                    let _ = reply.send(Err(fault.clone().on(&self.path)));
                }
                (None, Work::End(lease)) => {
                    let error = fault.clone().on(&self.path);
                    tracing::warn!(%lease, %error, "cannot end a lease yet; will try again");
                }
                (None, _) => {}
            }
        }
    }

    fn checkpoint_if_due(&mut self, idle: bool) {
        if self.log_bytes >= CHECKPOINT_AT_LATEST || (idle && self.log_bytes >= CHECKPOINT_WHEN_IDLE) {
            self.checkpoint("PASSIVE");
        }
    }

    fn checkpoint(&mut self, mode: &str) {
        self.log_bytes = 0;
        let done = self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
        if let Err(error) = done {
            // The log stays longer; the next commits and checkpoints tell how the disk is.
            tracing::warn!(path = %self.path.display(), %error, "cannot checkpoint the state's log");
        }
    }
}

/// Adds what else is queued. Returns whether nothing is left.
fn gather(batch: &mut Vec<Request>, requests: &Receiver<Request>) -> bool {
    let mut bytes: usize = batch.iter().map(|request| request.work.bytes()).sum();
    while batch.len() < BATCH_REQUESTS && bytes < BATCH_BYTES {
        match requests.try_recv() {
            Ok(request) => {
                bytes += request.work.bytes();
                batch.push(request);
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
        }
    }
    false
}
