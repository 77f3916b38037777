//! Two openers of one file: the caller should prevent it; if it happens, no data is lost.

use std::collections::BTreeSet;

use store::{CommitError, Range, Store, Txn, WatchError};

use crate::support::{temp_dir, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_of_both_are_kept_with_revisions_of_their_own() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    let mut openers = Vec::new();
    for _ in 0..4 {
        let path = path.clone();
        // Together, so that they also race for the creation.
        openers.push(std::thread::spawn(move || Store::open_embedded(&path).unwrap()));
    }
    let stores: Vec<Store> = openers.into_iter().map(|opener| opener.join().unwrap()).collect();
    let writers = stores.iter().cloned().enumerate().map(|(opener, store)| {
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for n in 0..100 {
                let txn =
                    Txn::new().expect_absent(format!("{opener}/{n:03}")).put(format!("{opener}/{n:03}"), "x");
                revisions.push(store.commit(txn).await.unwrap());
            }
            revisions
        })
    });
    let mut revisions = BTreeSet::new();
    for writer in writers.collect::<Vec<_>>() {
        revisions.extend(writer.await.unwrap());
    }
    assert_eq!(revisions.len(), 400, "every commit has its own revision");
    for store in &stores {
        let found = store.range(Range::prefix("")).await.unwrap();
        assert_eq!(found.kvs.len(), 400);
        assert_eq!(found.revision.0, 400);
    }
}

#[tokio::test]
async fn guards_see_and_watches_notice_the_other_opener() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    let one = Store::open_embedded(&path).unwrap();
    let two = Store::open_embedded(&path).unwrap();
    let mut watch = one.watch("", None);
    two.commit(Txn::new().put("a", "2")).await.unwrap();
    let refused = one.commit(Txn::new().expect_absent("a").put("a", "1")).await;
    assert!(matches!(refused, Err(CommitError::Conflict { .. })));
    one.commit(Txn::new().put("b", "1")).await.unwrap();
    // It has missed a change, so it must not go on as if it had not.
    assert_eq!(within("the error", watch.next()).await, Err(WatchError::Lagged));
}
