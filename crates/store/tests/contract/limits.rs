//! What is refused before it reaches an engine.

use store::{Error, LeaseId, MAX_KEY_BYTES, MAX_TXN_OPERATIONS, MAX_VALUE_BYTES, Range, Txn};

use crate::support::{error, fresh};

#[tokio::test]
async fn the_largest_allowed_is_allowed() {
    let (store, _dir) = fresh();
    let key = "k".repeat(MAX_KEY_BYTES);
    let value = vec![7; MAX_VALUE_BYTES];
    store.commit(Txn::new().put(&key, value.clone())).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, value);

    let mut txn = Txn::new();
    for n in 0..MAX_TXN_OPERATIONS {
        txn = txn.expect_absent(format!("n/{n}")).put(format!("n/{n}"), "x");
    }
    store.commit(txn).await.unwrap();
    let found = store.range(Range::prefix("n/")).await.unwrap();
    assert_eq!(found.kvs.len(), MAX_TXN_OPERATIONS);
}

#[tokio::test]
async fn more_is_refused_and_changes_nothing() {
    let (store, _dir) = fresh();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    for txn in [
        Txn::new().put(&long, ""),
        Txn::new().delete(&long),
        Txn::new().delete_prefix(&long),
        Txn::new().expect_absent(&long),
    ] {
        let refused = error(store.commit(txn.put("ok", "")).await);
        assert!(matches!(refused, Error::KeyTooLong { bytes, .. } if bytes == long.len()));
        assert!(refused.to_string().len() < 200);
    }
    for txn in [Txn::new().put("", ""), Txn::new().delete(""), Txn::new().expect_exists("")] {
        assert!(matches!(error(store.commit(txn.put("ok", "")).await), Error::EmptyKey));
    }

    let value = vec![0; MAX_VALUE_BYTES + 1];
    let refused = error(store.commit(Txn::new().put("big", value).put("ok", "")).await);
    assert!(matches!(refused, Error::ValueTooLarge { key, .. } if key == "big"));

    let many = (0..=MAX_TXN_OPERATIONS).fold(Txn::new(), |txn, n| txn.put(format!("{n}"), ""));
    let refused = error(store.commit(many).await);
    assert!(matches!(refused, Error::TooManyOperations { operations } if operations == 1025));
    let many = (0..=MAX_TXN_OPERATIONS).fold(Txn::new(), |txn, _| txn.expect_absent("x"));
    assert!(matches!(error(store.commit(many).await), Error::TooManyOperations { .. }));

    let value = vec![0; MAX_VALUE_BYTES];
    let large = (0..6).fold(Txn::new(), |txn, n| txn.put(format!("{n}"), value.clone()));
    assert!(matches!(error(store.commit(large).await), Error::TransactionTooLarge { .. }));

    assert!(store.range(Range::prefix("")).await.unwrap().kvs.is_empty());
}

#[tokio::test]
async fn a_key_is_written_once_in_a_transaction() {
    let (store, _dir) = fresh();
    for txn in [
        Txn::new().put("a/b", "1").put("a/b", "2"),
        Txn::new().put("a/b", "1").delete("a/b"),
        Txn::new().delete_prefix("a/").put("a/b", "1"),
        Txn::new().put("a/b", "1").put_with_lease("a/b", "2", LeaseId(1)),
    ] {
        let refused = error(store.commit(txn).await);
        assert!(matches!(refused, Error::DuplicateKey { key } if key == "a/b"));
    }
    store.commit(Txn::new().put("a/b", "1")).await.unwrap();
    let overlapping = Txn::new().delete("a/b").delete("a/b").delete_prefix("a");
    store.commit(overlapping).await.unwrap();
    assert_eq!(store.get("a/b").await.unwrap(), None);
}
