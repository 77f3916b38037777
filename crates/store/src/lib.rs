//! The state store: a key-value contract in etcd's terms, and the engines that keep it.
//!
//! The contract, for every engine:
//!
//! - Keys are UTF-8 strings ordered by their bytes; values are opaque bytes. One [`Revision`] counts
//!   the whole store; every transaction that changes something gets the next one.
//! - A [`Txn`] is a list of guards (compares) and a list of writes. Either all guards hold and all
//!   writes happen at one revision, or nothing happens and the first failing guard is named.
//! - An acknowledged commit is on stable storage. Readers never see a commit before it is there.
//! - A [`Watch`] delivers, in revision order and without gaps, every change under its prefix, or
//!   says that it cannot (the consumer then ranges again and watches from that range's revision).
//! - Keys attached to a lease are deleted, in one transaction, when the lease ends.
//!
//! The engine embedded in the process is SQLite behind one writer thread: [`Store::open_embedded`].
//! Nothing in the interface is specific to it: what an etcd server could not do (code run inside a
//! transaction, two writes of one key in a transaction, history of any length) is not offered.

mod embedded;
mod error;
mod history;
mod json;
mod kv;
mod range;
mod txn;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use error::{CommitError, Error, WatchError};
pub use json::{JsonRange, Versioned};
pub use kv::{KeyValue, LeaseId, Revision};
pub use range::{Range, RangeResult};
pub use txn::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPERATIONS, MAX_VALUE_BYTES, Txn};
pub use watch::{Event, Watch, WatchBatch};

use embedded::Embedded;

/// A handle on the state; clones share the engine. Dropping the last one finishes the accepted
/// commits and closes the engine.
#[derive(Clone, Debug)]
pub struct Store {
    engine: Engine,
}

#[derive(Clone, Debug)]
enum Engine {
    Embedded(Arc<Embedded>),
}

impl Store {
    /// Opens the embedded engine on the file `path`, creating it (mode 0600) and its missing parent
    /// directories (mode 0700).
    ///
    /// A file that is damaged, belongs to another program or was written by a newer format is an
    /// error; it is never replaced. Keeping a second process away is the caller's business: two
    /// openers do not corrupt each other's data, but neither is told of the other's changes by its
    /// watches, and each expires the leases on its own clock.
    ///
    /// Blocks on disk I/O: call it at start-up or from a blocking thread.
    pub fn open_embedded(path: &Path) -> Result<Store, Error> {
        let engine = Embedded::open(path)?;
        Ok(Store { engine: Engine::Embedded(Arc::new(engine)) })
    }

    /// The key's current value, or `None` if there is no such key. Sees every commit that was
    /// acknowledged before the call.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.get(key),
        }
    }

    /// The keys in `range`, all as of the one revision that the result names.
    pub async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.range(range).await,
        }
    }

    /// The current revision: that of the last committed transaction that changed something.
    pub async fn revision(&self) -> Result<Revision, Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.revision(),
        }
    }

    /// Commits `txn`: checks its guards against the current state and, if all hold, does all its
    /// writes at the returned revision. Resolves when the commit is on stable storage.
    ///
    /// A transaction that changes nothing (guards only, or deletes of absent keys) returns the
    /// current revision and produces no event.
    ///
    /// [`CommitError::Conflict`] means that nothing happened. After [`CommitError::Error`] the
    /// transaction has not taken effect, except that on an I/O failure of the disk itself
    /// followed by a crash it may be found after the restart: read before repeating it. Dropping the
    /// future leaves the outcome open.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let txn = txn.check()?;
        match &self.engine {
            Engine::Embedded(engine) => engine.commit(txn).await,
        }
    }

    /// Watches the keys that begin with `prefix`: every change after the revision `after`, or, with
    /// `None`, every change committed after this call. `after` is usually the revision of the range
    /// that the watcher started from.
    pub fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        match &self.engine {
            Engine::Embedded(engine) => engine.watch(prefix, after),
        }
    }

    /// Grants a lease that ends `ttl` after its last [`keep_alive`](Store::keep_alive). An engine may
    /// round `ttl` up (etcd: to seconds). Leases survive restarts: a restart gives each its whole
    /// `ttl` again, because its holder could not renew it meanwhile.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.grant_lease(ttl).await,
        }
    }

    /// Starts the lease's time again and returns its time to live.
    /// [`Error::LeaseNotFound`] if it has ended.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.keep_alive(lease),
        }
    }

    /// Ends the lease now and deletes its keys in one transaction, whose revision is returned.
    /// [`Error::LeaseNotFound`] if it has ended already.
    pub async fn revoke(&self, lease: LeaseId) -> Result<Revision, Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.revoke(lease).await,
        }
    }

    /// Writes a consistent copy of the state to the new file `to` (mode 0600) while the store goes on
    /// serving. The copy is on stable storage when the call returns, and
    /// [`open_embedded`](Store::open_embedded) opens it. An existing `to` is an error and stays as it is.
    pub async fn backup(&self, to: &Path) -> Result<(), Error> {
        match &self.engine {
            Engine::Embedded(engine) => engine.backup(to).await,
        }
    }
}
