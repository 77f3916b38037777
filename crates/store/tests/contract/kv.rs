//! Values, revisions, guards, ranges.

use store::{Range, Revision, Txn};

use crate::support::{conflict, fresh, keys};

#[tokio::test]
async fn a_put_is_read_back_with_its_revisions() {
    let (store, _dir) = fresh();
    assert_eq!(store.get("a").await.unwrap(), None);

    let first = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let second = store.commit(Txn::new().put("a", "2").put("b", "")).await.unwrap();
    assert_eq!(second.0, first.0 + 1);

    let a = store.get("a").await.unwrap().unwrap();
    assert_eq!((&a.key[..], &a.value[..]), ("a", &b"2"[..]));
    assert_eq!((a.create_revision, a.mod_revision), (first, second));
    assert_eq!(a.lease, None);
    let b = store.get("b").await.unwrap().unwrap();
    assert!(b.value.is_empty());
    assert_eq!((b.create_revision, b.mod_revision), (second, second));
    assert_eq!(store.revision().await.unwrap(), second);
}

#[tokio::test]
async fn a_key_created_again_has_a_new_create_revision() {
    let (store, _dir) = fresh();
    store.commit(Txn::new().put("a", "1")).await.unwrap();
    store.commit(Txn::new().delete("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    let again = store.commit(Txn::new().put("a", "2")).await.unwrap();
    let a = store.get("a").await.unwrap().unwrap();
    assert_eq!((a.create_revision, a.mod_revision), (again, again));
}

#[tokio::test]
async fn what_changes_nothing_has_no_revision_of_its_own() {
    let (store, _dir) = fresh();
    let before = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let nothing = [
        Txn::new(),
        Txn::new().expect_exists("a"),
        Txn::new().delete("absent"),
        Txn::new().delete_prefix("absent/"),
    ];
    for txn in nothing {
        assert_eq!(store.commit(txn).await.unwrap(), before);
    }
    let after = store.commit(Txn::new().put("a", "1")).await.unwrap();
    assert_eq!(after.0, before.0 + 1, "the same value again is a change");
}

#[tokio::test]
async fn guards_hold_or_nothing_happens() {
    let (store, _dir) = fresh();
    let at = store.commit(Txn::new().put("there", "1")).await.unwrap();

    let fails = [
        Txn::new().expect_absent("there"),
        Txn::new().expect_exists("absent"),
        Txn::new().expect_revision("there", Revision(at.0 + 1)),
        Txn::new().expect_revision("there", Revision(0)),
    ];
    for txn in fails {
        let key = conflict(store.commit(txn.put("new", "x").delete("there")).await);
        assert!(key == "there" || key == "absent");
        assert_eq!(store.get("new").await.unwrap(), None);
        assert_eq!(store.revision().await.unwrap(), at);
    }
    let key = conflict(store.commit(Txn::new().expect_revision("absent", at)).await);
    assert_eq!(key, "absent");

    let txn = Txn::new()
        .expect_exists("there")
        .expect_revision("there", at)
        .expect_absent("new")
        .put("new", "x")
        .delete("there");
    let next = store.commit(txn).await.unwrap();
    assert_eq!(next.0, at.0 + 1);
    assert_eq!(store.get("there").await.unwrap(), None);
    assert_eq!(conflict(store.commit(Txn::new().expect_exists("there")).await), "there");
}

#[tokio::test]
async fn the_first_failing_guard_is_named() {
    let (store, _dir) = fresh();
    let txn = Txn::new().expect_absent("z").expect_exists("y").expect_exists("x");
    assert_eq!(conflict(store.commit(txn).await), "y");
}

#[tokio::test]
async fn delete_prefix_takes_exactly_the_prefix() {
    let (store, _dir) = fresh();
    let mut txn = Txn::new();
    for key in ["a", "a/", "a/1", "a/2/3", "a0", "b"] {
        txn = txn.put(key, key);
    }
    store.commit(txn).await.unwrap();
    store.commit(Txn::new().delete_prefix("a/")).await.unwrap();
    let left = store.range(Range::prefix("")).await.unwrap();
    assert_eq!(keys(&left.kvs), ["a", "a0", "b"]);
    store.commit(Txn::new().delete_prefix("")).await.unwrap();
    assert!(store.range(Range::prefix("")).await.unwrap().kvs.is_empty());
}

#[tokio::test]
async fn ranges_page_in_both_directions() {
    let (store, _dir) = fresh();
    let mut txn = Txn::new().put("n", "x").put("n0", "x").put("m/9", "x");
    let mut all = Vec::new();
    for n in 0..10 {
        all.push(format!("n/{n}"));
        txn = txn.put(format!("n/{n}"), n.to_string());
    }
    let revision = store.commit(txn).await.unwrap();

    let whole = store.range(Range::prefix("n/")).await.unwrap();
    assert_eq!(keys(&whole.kvs), all);
    assert!(!whole.more);
    assert_eq!(whole.revision, revision);
    assert_eq!(&whole.kvs[7].value[..], b"7");

    for reverse in [false, true] {
        let mut seen = Vec::new();
        let mut page = Range::prefix("n/").limit(3);
        if reverse {
            page = page.reverse();
        }
        loop {
            let found = store.range(page.clone()).await.unwrap();
            seen.extend(found.kvs.iter().map(|kv| kv.key.clone()));
            if !found.more {
                break;
            }
            assert_eq!(found.kvs.len(), 3);
            page = page.after(seen.last().unwrap());
        }
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, all, "reverse: {reverse}");
    }

    let exact = store.range(Range::prefix("n/").limit(10)).await.unwrap();
    assert!(!exact.more && exact.kvs.len() == 10);
    let none = store.range(Range::prefix("n/").limit(0)).await.unwrap();
    assert!(none.more && none.kvs.is_empty());
    let absent = store.range(Range::prefix("n/").after("n/55")).await.unwrap();
    assert_eq!(keys(&absent.kvs), ["n/6", "n/7", "n/8", "n/9"]);
    let before = store.range(Range::prefix("n/").after("a")).await.unwrap();
    assert_eq!(before.kvs.len(), 10, "a start before the prefix excludes nothing");
    let beyond = store.range(Range::prefix("n/").after("z")).await.unwrap();
    assert!(beyond.kvs.is_empty() && !beyond.more);
    let beyond = store.range(Range::prefix("n/").after("a").reverse()).await.unwrap();
    assert!(beyond.kvs.is_empty() && !beyond.more);
}

#[tokio::test]
async fn keys_only_leaves_out_the_values() {
    let (store, _dir) = fresh();
    let revision = store.commit(Txn::new().put("a", "1")).await.unwrap();
    let found = store.range(Range::prefix("").keys_only()).await.unwrap();
    assert_eq!(keys(&found.kvs), ["a"]);
    assert!(found.kvs[0].value.is_empty());
    assert_eq!(found.kvs[0].mod_revision, revision);
}

#[tokio::test]
async fn keys_are_ordered_by_their_bytes() {
    let (store, _dir) = fresh();
    let mut expected = ["", "\0", "\0\0", "A", "a", "a\u{7f}", "a\u{80}", "é", "\u{10ffff}"]
        .map(|suffix| format!("k{suffix}"));
    let mut txn = Txn::new();
    for key in &expected {
        txn = txn.put(key, "x");
    }
    store.commit(txn).await.unwrap();
    expected.sort_unstable();
    let found = store.range(Range::prefix("k")).await.unwrap();
    assert_eq!(keys(&found.kvs), expected);
    let max = store.range(Range::prefix("k\u{10ffff}")).await.unwrap();
    assert_eq!(max.kvs.len(), 1);
}

/// More than is read without leaving the calling thread.
#[tokio::test]
async fn a_long_range_is_one_snapshot() {
    let (store, _dir) = fresh();
    let put_all = |value: &'static str| {
        let txn = (0..1000).fold(Txn::new(), |txn, n| txn.put(format!("k/{n:04}"), value));
        store.commit(txn)
    };
    put_all("0").await.unwrap();
    let writer = async {
        for value in ["1", "2", "3", "4", "5", "6", "7", "8", "9"] {
            put_all(value).await.unwrap();
        }
    };
    let reader = async {
        for _ in 0..30 {
            let found = store.range(Range::prefix("k/")).await.unwrap();
            assert_eq!(found.kvs.len(), 1000);
            for kv in &found.kvs {
                assert_eq!(kv.mod_revision, found.revision);
                assert_eq!(kv.value, found.kvs[0].value);
            }
        }
    };
    tokio::join!(writer, reader);
}

/// Of concurrent claims of one key exactly one wins, also when they share a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_claims_have_one_winner() {
    let (store, _dir) = fresh();
    for round in 0..20 {
        let claims = (0..32).map(|claimant: i32| {
            let store = store.clone();
            tokio::spawn(async move {
                let txn = Txn::new()
                    .expect_absent(format!("claim/{round}"))
                    .put(format!("claim/{round}"), claimant.to_string())
                    .put(format!("won/{round}/{claimant}"), "");
                store.commit(txn).await
            })
        });
        let mut won = 0;
        for claim in claims.collect::<Vec<_>>() {
            match claim.await.unwrap() {
                Ok(_) => won += 1,
                result => assert_eq!(conflict(result), format!("claim/{round}")),
            }
        }
        assert_eq!(won, 1);
        let winners = store.range(Range::prefix(format!("won/{round}/"))).await.unwrap();
        assert_eq!(winners.kvs.len(), 1);
    }
}

/// Optimistic increments: nothing is lost and every commit has its own revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_increments_all_count() {
    let (store, _dir) = fresh();
    let start = store.commit(Txn::new().put("n", "0")).await.unwrap();
    let workers = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            while revisions.len() < 25 {
                let n = store.get("n").await.unwrap().unwrap();
                let value: u32 = std::str::from_utf8(&n.value).unwrap().parse().unwrap();
                let txn = Txn::new().expect_revision("n", n.mod_revision).put("n", (value + 1).to_string());
                if let Ok(revision) = store.commit(txn).await {
                    let seen = store.get("n").await.unwrap().unwrap();
                    assert!(seen.mod_revision >= revision, "an acknowledged commit is visible");
                    revisions.push(revision);
                }
            }
            revisions
        })
    });
    let mut revisions = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        revisions.extend(worker.await.unwrap());
    }
    revisions.sort_unstable();
    let expected: Vec<_> = (1..=200).map(|n| Revision(start.0 + n)).collect();
    assert_eq!(revisions, expected);
    assert_eq!(&store.get("n").await.unwrap().unwrap().value[..], b"200");
}
