//! Watching a prefix.

use std::sync::Arc;

use crate::history::{Follower, History};
use crate::{KeyValue, Revision, WatchError};

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was created or written; it is a creation if `create_revision == mod_revision`.
    Put(KeyValue),
    /// The key was deleted, by a transaction or by its lease's end.
    Delete { key: String },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Event::Put(kv) => &kv.key,
            Event::Delete { key } => key,
        }
    }
}

/// What one transaction changed under the watched prefix; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// Delivers the changes under a prefix; see [`Store::watch`](crate::Store::watch).
///
/// It does not keep the store open. What it has not yet delivered is bounded for all watches
/// together, so a slow consumer costs no memory: it gets [`WatchError::Lagged`].
#[derive(Debug)]
pub struct Watch {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Embedded { history: Arc<History>, follower: Follower },
}

impl Watch {
    pub(crate) fn embedded(history: Arc<History>, prefix: &str, after: Option<Revision>) -> Watch {
        let follower = history.follow(prefix, after);
        Watch { source: Source::Embedded { history, follower } }
    }

    /// The next transaction's changes, in revision order and without gaps. Waits for one; dropping
    /// the future loses nothing. An error is final: further calls return it again.
    pub async fn next(&mut self) -> Result<WatchBatch, WatchError> {
        match &mut self.source {
            Source::Embedded { history, follower } => loop {
                if let Some(outcome) = history.take(follower) {
                    return outcome;
                }
                follower.changed().await;
            },
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        match &self.source {
            Source::Embedded { history, follower } => history.unfollow(follower),
        }
    }
}
