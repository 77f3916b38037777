//! What can go wrong in the log store, in the service's words where the caller is at fault.

use std::sync::Arc;

/// An error of the log store. The texts of the first group are what the API answers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("The specified log group does not exist.")]
    GroupNotFound,
    #[error("The specified log stream does not exist.")]
    StreamNotFound,
    #[error("The specified log group already exists")]
    GroupExists,
    #[error("The specified log stream already exists")]
    StreamExists,
    #[error("The specified nextToken is invalid.")]
    InvalidToken,
    #[error("{0}")]
    InvalidParameter(String),
    #[error("Too many tags: a log group can have at most {max}.", max = super::MAX_TAGS)]
    TooManyTags,
    #[error("The log group is protected from deletion. Turn deletion protection off first.")]
    DeletionProtected,
    #[error("The limit of {max} concurrent Live Tail sessions is reached.", max = super::tail::MAX_SESSIONS)]
    TooManySessions,

    /// Nothing was written; the store serves reads and takes writes again when there is room.
    #[error("the disk of the log store is full")]
    DiskFull,
    #[error("the log store failed")]
    Storage(#[source] Arc<fjall::Error>),
    #[error("the log store could not be opened")]
    Open(#[source] Arc<std::io::Error>),
    /// A record that this version did not write or that was damaged.
    #[error("the log store holds a record that cannot be read: {0}")]
    Corrupt(&'static str),
    #[error("the log store has stopped")]
    Stopped,
}

impl From<fjall::Error> for LogError {
    fn from(error: fjall::Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}
