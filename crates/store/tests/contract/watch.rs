//! Watches: order, gaps, slow consumers.

use std::collections::BTreeMap;

use store::{Event, Range, Revision, Txn, Watch, WatchError};

use crate::support::{eventually, fresh, within};

async fn next(watch: &mut Watch) -> (Revision, Vec<String>) {
    let batch = within("an event", watch.next()).await.unwrap();
    let describe = |event: &Event| match event {
        Event::Put(kv) => format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value)),
        Event::Delete { key } => format!("-{key}"),
    };
    (batch.revision, batch.events.iter().map(describe).collect())
}

#[tokio::test]
async fn events_come_by_transaction_and_only_of_the_prefix() {
    let (store, _dir) = fresh();
    store.commit(Txn::new().put("a/0", "before")).await.unwrap();
    let mut watch = store.watch("a/", None);
    let first = store.commit(Txn::new().put("a/1", "x").put("b/1", "x").put("a/2", "y")).await.unwrap();
    store.commit(Txn::new().put("b/2", "x")).await.unwrap();
    store.commit(Txn::new().expect_absent("a/1").put("a/3", "x")).await.unwrap_err();
    let last = store.commit(Txn::new().delete("a/9").delete_prefix("a/")).await.unwrap();

    assert_eq!(next(&mut watch).await, (first, vec!["a/1=x".into(), "a/2=y".into()]));
    let deleted = vec!["-a/0".into(), "-a/1".into(), "-a/2".into()];
    assert_eq!(next(&mut watch).await, (last, deleted));
}

#[tokio::test]
async fn a_watch_continues_where_a_range_ended() {
    let (store, _dir) = fresh();
    store.commit(Txn::new().put("a/1", "1")).await.unwrap();
    let seen = store.range(Range::prefix("a/")).await.unwrap();
    store.commit(Txn::new().put("a/2", "2")).await.unwrap();
    store.commit(Txn::new().put("a/3", "3")).await.unwrap();
    let mut watch = store.watch("a/", Some(seen.revision));
    assert_eq!(next(&mut watch).await.1, ["a/2=2"]);
    assert_eq!(next(&mut watch).await.1, ["a/3=3"]);
    store.commit(Txn::new().put("a/4", "4")).await.unwrap();
    assert_eq!(next(&mut watch).await.1, ["a/4=4"]);
}

#[tokio::test]
async fn a_watch_from_a_future_revision_waits_for_it() {
    let (store, _dir) = fresh();
    let now = store.revision().await.unwrap();
    let mut watch = store.watch("", Some(Revision(now.0 + 2)));
    for key in ["1", "2", "3"] {
        store.commit(Txn::new().put(key, "")).await.unwrap();
    }
    assert_eq!(next(&mut watch).await, (Revision(now.0 + 3), vec!["3=".into()]));
}

#[tokio::test]
async fn watches_of_nested_and_equal_prefixes_are_independent() {
    let (store, _dir) = fresh();
    let prefixes = ["", "é", "é/", "é/1", "é/12", "e"];
    let mut watches = prefixes.map(|prefix| store.watch(prefix, None));
    let mut second = store.watch("é/", None);
    drop(store.watch("é/", None));
    store.commit(Txn::new().put("é/1", "x")).await.unwrap();
    store.commit(Txn::new().put("e", "y")).await.unwrap();
    store.commit(Txn::new().put("é/12", "z")).await.unwrap();

    let expected: [&[&str]; 6] = [
        &["é/1=x", "e=y", "é/12=z"],
        &["é/1=x", "é/12=z"],
        &["é/1=x", "é/12=z"],
        &["é/1=x", "é/12=z"],
        &["é/12=z"],
        &["e=y"],
    ];
    for (watch, expected) in watches.iter_mut().zip(expected) {
        for event in expected {
            assert_eq!(next(watch).await.1, [*event]);
        }
    }
    assert_eq!(next(&mut second).await.1, ["é/1=x"]);
}

/// Several writers, several watchers that each mirror the state: at the end every mirror equals it, and none
/// has seen a revision twice or out of order, or missed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_watchers_miss_nothing() {
    const WRITERS: u64 = 4;
    const COMMITS: u64 = 300;
    let (store, _dir) = fresh();
    let start = store.revision().await.unwrap();
    let end = Revision(start.0 + WRITERS * COMMITS);

    let mut watchers = Vec::new();
    for n in 0..4 {
        let store = store.clone();
        watchers.push(tokio::spawn(async move {
            // Each joins at another time.
            eventually("the time to join", async || {
                let joined = store.revision().await.unwrap().0 >= start.0 + n * COMMITS / 2;
                joined.then_some(())
            })
            .await;
            let seen = store.range(Range::prefix("w/")).await.unwrap();
            let mut mirror: BTreeMap<_, _> = seen.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
            let mut at = seen.revision;
            let mut watch = store.watch("w/", Some(at));
            while at < end {
                let batch = within("an event", watch.next()).await.unwrap();
                assert_eq!(batch.revision.0, at.0 + 1, "every commit has an event here");
                at = batch.revision;
                for event in batch.events {
                    match event {
                        Event::Put(kv) => {
                            assert_eq!(kv.mod_revision, at);
                            mirror.insert(kv.key.clone(), kv);
                        }
                        Event::Delete { key } => {
                            assert!(mirror.remove(&key).is_some(), "{key} was there");
                        }
                    }
                }
                assert!(store.revision().await.unwrap() >= at, "durable before it is told");
            }
            mirror
        }));
    }
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..COMMITS {
                let txn = match n % 5 {
                    4 => Txn::new().delete_prefix(format!("w/{writer}/{}/", (n - 1) % 7)),
                    _ => Txn::new()
                        .put(format!("w/{writer}/{}/a", n % 7), n.to_string())
                        .put(format!("w/{writer}/{}/b", n % 7), n.to_string()),
                };
                store.commit(txn).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let state = store.range(Range::prefix("w/")).await.unwrap();
    assert_eq!(state.revision, end);
    for watcher in watchers {
        let mirror: Vec<_> = watcher.await.unwrap().into_values().collect();
        assert_eq!(mirror, state.kvs);
    }
}

#[tokio::test]
async fn a_slow_consumer_is_told_that_it_lost_changes() {
    let (store, _dir) = fresh();
    let start = store.revision().await.unwrap();
    let mut slow = store.watch("slow/", None);
    let mut quiet = store.watch("quiet/", None);
    // More than any history keeps.
    let value = vec![0; 1 << 20];
    for n in 0..40 {
        store.commit(Txn::new().put(format!("slow/{}", n % 3), value.clone())).await.unwrap();
    }
    assert_eq!(within("the error", slow.next()).await, Err(WatchError::Lagged));
    assert_eq!(within("the same error", slow.next()).await, Err(WatchError::Lagged));

    let mut old = store.watch("slow/", Some(start));
    let compacted = within("the error", old.next()).await;
    let Err(WatchError::Compacted { after }) = compacted else {
        panic!("expected a compacted watch, not {compacted:?}");
    };
    assert!(after > start);

    // What had nothing to lose goes on.
    store.commit(Txn::new().put("quiet/1", "x")).await.unwrap();
    assert_eq!(next(&mut quiet).await.1, ["quiet/1=x"]);

    // The way back.
    let seen = store.range(Range::prefix("slow/")).await.unwrap();
    let mut again = store.watch("slow/", Some(seen.revision));
    store.commit(Txn::new().put("slow/1", "x")).await.unwrap();
    assert_eq!(next(&mut again).await.1, ["slow/1=x"]);
}

#[tokio::test]
async fn closing_the_store_ends_its_watches_after_what_they_have() {
    let (store, _dir) = fresh();
    let mut watch = store.watch("", None);
    let second = store.clone();
    drop(store);
    second.commit(Txn::new().put("a", "1")).await.unwrap();
    drop(second);
    assert_eq!(next(&mut watch).await.1, ["a=1"]);
    assert_eq!(within("the end", watch.next()).await, Err(WatchError::Closed));
}

#[tokio::test]
async fn a_dropped_next_loses_nothing() {
    let (store, _dir) = fresh();
    let mut watch = store.watch("", None);
    for n in 0..50 {
        // Polled once, then dropped.
        let commit = store.commit(Txn::new().put("n", n.to_string()));
        tokio::select! {
            biased;
            _ = std::future::ready(()) => {}
            _ = watch.next() => panic!("there is nothing yet"),
        }
        commit.await.unwrap();
        assert_eq!(next(&mut watch).await.1, [format!("n={n}")]);
    }
}
