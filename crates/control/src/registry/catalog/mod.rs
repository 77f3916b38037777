//! Changes of the registry's records, each one transaction under guards: repositories, images and
//! tags, and the links between repositories and blobs.

mod blob;
mod image;
mod repository;

pub use image::{Pushed, Untagged};

use std::future::Future;

use store::{CommitError, Error, Revision, Store, Txn};

use super::error::RegistryError;

/// How often a change is decided anew after another writer was faster. Each round lost is another's
/// round won, so this many mean at least as many concurrent changes of one repository.
const ATTEMPTS: usize = 64;

impl From<Error> for RegistryError {
    fn from(error: Error) -> Self {
        match error {
            Error::NoSpace { .. } => Self::DiskFull,
            error => Self::Store(Box::new(error)),
        }
    }
}

impl From<CommitError> for RegistryError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict { .. } => Self::Contended,
            CommitError::Error(error) => error.into(),
            CommitError::Closed => Error::Closed.into(),
        }
    }
}

/// What to do after reading: commit and return, or return what is there.
enum Decision<T> {
    Commit(Txn, T),
    Done(T),
}

/// Reads, decides and commits, again from the start when another writer was faster.
async fn transact<T, F, R>(store: &Store, mut decide: F) -> Result<T, RegistryError>
where
    F: FnMut() -> R,
    R: Future<Output = Result<Decision<T>, RegistryError>>,
{
    for _ in 0..ATTEMPTS {
        match decide().await? {
            Decision::Done(value) => return Ok(value),
            Decision::Commit(txn, value) => match store.commit(txn).await {
                Ok(_) => return Ok(value),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
    Err(RegistryError::Contended)
}

/// Guards that the key is as it was read: at a revision, or absent.
fn expect(txn: Txn, key: &str, revision: Option<Revision>) -> Txn {
    match revision {
        Some(revision) => txn.expect_revision(key, revision),
        None => txn.expect_absent(key),
    }
}
