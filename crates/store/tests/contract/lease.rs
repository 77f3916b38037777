//! Leases.

use std::time::Duration;

use store::{Error, Event, LeaseId, Range, Txn};

use crate::support::{error, eventually, fresh, keys, within};

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn expiry_deletes_the_keys_in_one_transaction() {
    let (store, _dir) = fresh();
    let lease = store.grant_lease(SHORT).await.unwrap();
    let txn = Txn::new()
        .put_with_lease("l/2", "x", lease)
        .put_json_with_lease("l/1", &1, lease)
        .put("l/stays", "x");
    let put = store.commit(txn).await.unwrap();
    assert_eq!(store.get("l/1").await.unwrap().unwrap().lease, Some(lease));

    let mut watch = store.watch("l/", Some(put));
    let batch = within("the expiry", watch.next()).await.unwrap();
    assert_eq!(batch.revision.0, put.0 + 1);
    let deleted = ["l/1", "l/2"].map(|key| Event::Delete { key: key.to_owned() });
    assert_eq!(batch.events, deleted);
    let left = store.range(Range::prefix("l/")).await.unwrap();
    assert_eq!(keys(&left.kvs), ["l/stays"]);

    assert!(matches!(store.keep_alive(lease).await, Err(Error::LeaseNotFound(id)) if id == lease));
    assert!(matches!(store.revoke(lease).await, Err(Error::LeaseNotFound(_))));
    let late = Txn::new().put("other", "x").put_with_lease("l/3", "x", lease);
    assert!(matches!(error(store.commit(late).await), Error::LeaseNotFound(_)));
    assert_eq!(store.get("other").await.unwrap(), None);
}

#[tokio::test]
async fn a_lease_without_keys_ends_without_a_revision() {
    let (store, _dir) = fresh();
    let empty = store.grant_lease(SHORT).await.unwrap();
    let later = store.grant_lease(SHORT * 2).await.unwrap();
    let txn = Txn::new().put_with_lease("key", "", later);
    let put = store.commit(txn).await.unwrap();
    let mut watch = store.watch("", Some(put));
    let batch = within("the later expiry", watch.next()).await.unwrap();
    assert_eq!(batch.revision.0, put.0 + 1);
    assert!(matches!(store.revoke(empty).await, Err(Error::LeaseNotFound(_))));
}

#[tokio::test]
async fn keep_alive_keeps_alive() {
    let (store, _dir) = fresh();
    let kept = store.grant_lease(SHORT * 2).await.unwrap();
    let left = store.grant_lease(SHORT * 3).await.unwrap();
    let txn = Txn::new().put_with_lease("kept", "", kept).put_with_lease("left", "", left);
    store.commit(txn).await.unwrap();
    eventually("the end of the longer lease", async || {
        assert_eq!(store.keep_alive(kept).await.unwrap(), SHORT * 2);
        store.get("left").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(store.get("kept").await.unwrap().is_some());
    eventually("the end of this lease", async || store.get("kept").await.unwrap().is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn revoke_deletes_now() {
    let (store, _dir) = fresh();
    let lease = store.grant_lease(LONG).await.unwrap();
    let other = store.grant_lease(LONG).await.unwrap();
    assert_ne!(lease, other);
    let txn = Txn::new()
        .put_with_lease("a", "", lease)
        .put_with_lease("b", "", lease)
        .put_with_lease("c", "", other);
    let put = store.commit(txn).await.unwrap();
    let revoked = store.revoke(lease).await.unwrap();
    assert_eq!(revoked.0, put.0 + 1);
    assert_eq!(keys(&store.range(Range::prefix("")).await.unwrap().kvs), ["c"]);
    assert!(matches!(store.revoke(lease).await, Err(Error::LeaseNotFound(_))));
}

#[tokio::test]
async fn the_last_put_decides_the_lease() {
    let (store, _dir) = fresh();
    let first = store.grant_lease(LONG).await.unwrap();
    let second = store.grant_lease(LONG).await.unwrap();
    for key in ["moved", "detached", "stays"] {
        store.commit(Txn::new().put_with_lease(key, "", first)).await.unwrap();
    }
    store.commit(Txn::new().put_with_lease("moved", "", second)).await.unwrap();
    store.commit(Txn::new().put("detached", "")).await.unwrap();
    store.revoke(first).await.unwrap();
    let left = store.range(Range::prefix("")).await.unwrap();
    assert_eq!(keys(&left.kvs), ["detached", "moved"]);
    store.revoke(second).await.unwrap();
    let left = store.range(Range::prefix("")).await.unwrap();
    assert_eq!(keys(&left.kvs), ["detached"]);
}

#[tokio::test]
async fn odd_leases_are_refused() {
    let (store, _dir) = fresh();
    for ttl in [Duration::ZERO, Duration::MAX] {
        assert!(matches!(store.grant_lease(ttl).await, Err(Error::InvalidTtl)));
    }
    for lease in [LeaseId(0), LeaseId(7), LeaseId(u64::MAX)] {
        let txn = Txn::new().put_with_lease("a", "", lease);
        assert!(matches!(error(store.commit(txn).await), Error::LeaseNotFound(id) if id == lease));
        assert!(matches!(store.keep_alive(lease).await, Err(Error::LeaseNotFound(_))));
        assert!(matches!(store.revoke(lease).await, Err(Error::LeaseNotFound(_))));
    }
}
