//! Reading and changing ECS's records in the store.

use aws_api::Error;
use model::ClusterName;
use model::cluster::{Cluster, ClusterStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{CommitError, Range, Store, Txn, Versioned};

use super::errors;
use super::{Caller, Ecs};

/// How often a change is tried again when others change the same records meanwhile. Each round at
/// least one writer succeeds, so this is also the number of writers that never fail.
pub(super) const ATTEMPTS: usize = 128;

pub(super) async fn load<T: DeserializeOwned>(
    store: &Store,
    key: &str,
) -> Result<Option<Versioned<T>>, Error> {
    store.get_json(key).await.map_err(errors::internal)
}

/// All records under a prefix, read in batches: `T` should be the small part of them that is needed.
pub(super) async fn all<T: DeserializeOwned>(
    store: &Store,
    prefix: &str,
) -> Result<Vec<(String, Versioned<T>)>, Error> {
    const BATCH: usize = 500;
    let mut all = Vec::new();
    let mut range = Range::prefix(prefix).limit(BATCH);
    loop {
        let found = store.range_json::<T>(range).await.map_err(errors::internal)?;
        all.extend(found.entries);
        match all.last() {
            Some((last, _)) if found.more => range = Range::prefix(prefix).limit(BATCH).after(last),
            _ => return Ok(all),
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    /// A guard did not hold: read again, decide again.
    Conflict,
}

pub(super) async fn commit(store: &Store, txn: Txn) -> Result<Outcome, Error> {
    match store.commit(txn).await {
        Ok(_) => Ok(Outcome::Committed),
        Err(CommitError::Conflict { .. }) => Ok(Outcome::Conflict),
        Err(CommitError::Error(error)) => Err(errors::internal(error)),
        Err(CommitError::Closed) => Err(errors::internal(::store::Error::Closed)),
    }
}

/// Applies `change` to the record at `key` and writes it back; `None` when there is none. `change`
/// may run several times, each time on the current record.
pub(super) async fn update<T, F>(store: &Store, key: &str, mut change: F) -> Result<Option<T>, Error>
where
    T: Serialize + DeserializeOwned,
    F: FnMut(&mut T) -> Result<(), Error>,
{
    for _ in 0..ATTEMPTS {
        let Some(Versioned { mut value, revision }) = load::<T>(store, key).await? else { return Ok(None) };
        change(&mut value)?;
        let txn = Txn::new().expect_revision(key, revision).put_json(key, &value);
        if commit(store, txn).await? == Outcome::Committed {
            return Ok(Some(value));
        }
    }
    Err(errors::contention())
}

/// The cluster of that name, active or not.
pub(super) async fn cluster(
    ecs: &Ecs,
    caller: &Caller,
    name: &ClusterName,
) -> Result<Versioned<Cluster>, Error> {
    load(&ecs.store, &caller.scope().cluster(name)).await?.ok_or_else(errors::cluster_not_found)
}

/// The cluster of that name, if it can take work.
pub(super) async fn active_cluster(
    ecs: &Ecs,
    caller: &Caller,
    name: &ClusterName,
) -> Result<Versioned<Cluster>, Error> {
    let found = cluster(ecs, caller, name).await?;
    match found.value.status {
        ClusterStatus::Active => Ok(found),
        ClusterStatus::Inactive => Err(errors::cluster_inactive()),
    }
}
