//! What the tests share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::future::Future;
use std::time::{Duration, Instant};

use store::{CommitError, Error, KeyValue, Revision, Store};

/// How long a condition may take that is certain to come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A fresh store of the engine under test, and what must live as long as it.
pub fn fresh() -> (Store, tempfile::TempDir) {
    let dir = temp_dir();
    let store = Store::open_embedded(&dir.path().join("state").join("store.db"))
        .expect("a fresh directory takes a store");
    (store, dir)
}

pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("store-").tempdir().expect("the temp directory is writable")
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Polls `condition` until it yields something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The key that the commit conflicted on.
pub fn conflict(result: Result<Revision, CommitError>) -> String {
    match result {
        Err(CommitError::Conflict { key }) => key,
        other => panic!("expected a conflict, not {other:?}"),
    }
}

pub fn error(result: Result<Revision, CommitError>) -> Error {
    match result {
        Err(CommitError::Error(error)) => error,
        other => panic!("expected an error, not {other:?}"),
    }
}

pub fn keys(kvs: &[KeyValue]) -> Vec<&str> {
    kvs.iter().map(|kv| kv.key.as_str()).collect()
}
