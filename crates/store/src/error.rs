//! What can go wrong, in the caller's terms. No engine's own error types appear here.

use std::path::PathBuf;

use crate::txn::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPERATIONS, MAX_VALUE_BYTES};
use crate::{LeaseId, Revision};

/// A failed call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("a key must not be empty")]
    EmptyKey,
    #[error("the key beginning with {start:?} has {bytes} bytes; at most {MAX_KEY_BYTES} are allowed")]
    KeyTooLong { start: String, bytes: usize },
    #[error("the value of {key} has {bytes} bytes; at most {MAX_VALUE_BYTES} are allowed")]
    ValueTooLarge { key: String, bytes: usize },
    #[error(
        "a transaction has {operations} operations; at most {MAX_TXN_OPERATIONS} guards and as many writes are allowed"
    )]
    TooManyOperations { operations: usize },
    #[error("a transaction has {bytes} bytes; at most {MAX_TXN_BYTES} are allowed")]
    TransactionTooLarge { bytes: usize },
    #[error("a transaction writes {key} twice")]
    DuplicateKey { key: String },
    #[error("lease {0} does not exist or has ended")]
    LeaseNotFound(LeaseId),
    #[error("a lease's time to live must be more than zero and at most a year")]
    InvalidTtl,

    #[error("the value for {key} has no JSON form")]
    Encode {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    /// `detail` says what was expected where, never what was found: it may be a secret.
    #[error("the value of {key} is not what this program stores there: {detail}")]
    Decode { key: String, detail: String },

    /// The store goes on serving reads, and commits again when there is space.
    #[error("no space is left for the state in {}; free some on that file system", path.display())]
    NoSpace { path: PathBuf },
    /// Never repaired or replaced by the program: bring back a backup.
    #[error("the state in {} is damaged ({detail}); restore it from a backup", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error("{} is not Coracle's state: {detail}", path.display())]
    Foreign { path: PathBuf, detail: String },
    #[error(
        "the state in {} has format {found}, and this program knows formats up to {supported}; use a newer coracle", path.display()
    )]
    NewerFormat { path: PathBuf, found: i64, supported: i64 },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The engine failed in another way, usually of the disk or of another process holding the file.
    #[error("the state engine failed on {}", path.display())]
    Engine {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the store is closed")]
    Closed,
}

/// A transaction that did not commit.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The guard on `key` did not hold; nothing has changed. Read again, decide again.
    #[error("{key} is not as the transaction expects")]
    Conflict { key: String },
    #[error(transparent)]
    Error(Error),
    #[error("the store is closed")]
    Closed,
}

impl From<Error> for CommitError {
    fn from(error: Error) -> CommitError {
        match error {
            Error::Closed => CommitError::Closed,
            error => CommitError::Error(error),
        }
    }
}

/// A watch that ended. Except after [`Closed`](WatchError::Closed): range again, and watch from that
/// range's revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The changes after the revision that the watch was to start from are no longer known.
    #[error("changes are known only after revision {after}")]
    Compacted { after: Revision },
    /// The consumer was so slow that changes it had not taken were dropped.
    #[error("the watch fell behind and lost changes")]
    Lagged,
    #[error("the store is closed")]
    Closed,
}
