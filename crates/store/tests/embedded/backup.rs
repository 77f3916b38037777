//! Copies of a store in use.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use store::{Error, Range, Store, Txn};

use crate::support::{fresh, temp_dir};

/// Two keys that are always written together are equal in every copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_busy_store_is_one_revision_of_it() {
    let (store, dir) = fresh();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..3000 {
                let n = n.to_string();
                let txn = Txn::new().put("a", n.clone()).put("z", n.clone()).put(format!("n/{n}"), n);
                store.commit(txn).await.unwrap();
            }
        }
    });
    for copy in 0..5 {
        let least = store.revision().await.unwrap();
        let to = dir.path().join(format!("copy-{copy}.db"));
        store.backup(&to).await.unwrap();
        let most = store.revision().await.unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);

        let copy = Store::open_embedded(&to).unwrap();
        let revision = copy.revision().await.unwrap();
        assert!(least <= revision && revision <= most);
        let found = copy.range(Range::prefix("")).await.unwrap();
        if let (Some(first), Some(last)) = (found.kvs.first(), found.kvs.last()) {
            assert_eq!((&first.key[..], &last.key[..]), ("a", "z"));
            assert_eq!(first.value, last.value);
            assert_eq!(first.mod_revision, revision);
        }
        assert_eq!(found.kvs.len() as u64, if revision.0 == 0 { 0 } else { revision.0 + 2 });
        copy.commit(Txn::new().put("a", "of the copy")).await.unwrap();
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_backup_replaces_nothing_and_leaves_nothing_half() {
    let (store, _dir) = fresh();
    store.commit(Txn::new().put("a", "1")).await.unwrap();
    let to = temp_dir();
    let taken = to.path().join("taken");
    fs::write(&taken, "precious").unwrap();
    assert!(matches!(store.backup(&taken).await, Err(Error::Io { .. })));
    assert_eq!(fs::read(&taken).unwrap(), b"precious");
    let nowhere = to.path().join("no/such/directory/copy");
    assert!(matches!(store.backup(&nowhere).await, Err(Error::Io { .. })));
    let odd = to.path().join("it's \"odd\" é ?.db");
    store.backup(&odd).await.unwrap();
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2, "no drafts are left");
}
