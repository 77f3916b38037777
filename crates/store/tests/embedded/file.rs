//! The file itself: modes, damage, strangers, formats, restarts.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use store::{Error, LeaseId, Range, Revision, Store, Txn, WatchError};

use crate::support::{error, temp_dir, within};

async fn filled(path: &Path) -> Revision {
    let store = Store::open_embedded(path).unwrap();
    let mut revision = Revision(0);
    for n in 0..200 {
        let txn = Txn::new().put(format!("k/{n:03}"), vec![b'v'; 2000]);
        revision = store.commit(txn).await.unwrap();
    }
    revision
}

fn refused(path: &Path) -> Error {
    let before = fs::read(path).ok();
    let error = Store::open_embedded(path).expect_err("it must not open");
    assert_eq!(fs::read(path).ok(), before, "a refused file is left alone");
    let text = error.to_string();
    let named = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(named), "{text}");
    error
}

/// Everything in the directory of `path` whose name begins with that of `path`.
fn beside(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name))
        .collect()
}

#[tokio::test]
async fn directories_and_files_are_private() {
    let dir = temp_dir();
    let path = dir.path().join("a/b/store.db");
    let store = Store::open_embedded(&path).unwrap();
    store.commit(Txn::new().put("a", "1")).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("a")), 0o700);
    assert_eq!(mode(&dir.path().join("a/b")), 0o700);
    let files = beside(&path);
    assert_eq!(files.len(), 3, "the file, its log and the log's index: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
    drop(store);
    assert_eq!(beside(&path), [path], "a closed store is one file");
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    let revision = filled(&path).await;
    let store = Store::open_embedded(&path).unwrap();
    let found = store.range(Range::prefix("k/")).await.unwrap();
    assert_eq!((found.kvs.len(), found.revision), (200, revision));
    let next = store.commit(Txn::new().put("k/000", "x")).await.unwrap();
    assert_eq!(next.0, revision.0 + 1);

    // History is not kept over a restart, and a watch says so.
    let mut watch = store.watch("k/", Some(Revision(revision.0 - 1)));
    let compacted = WatchError::Compacted { after: revision };
    assert_eq!(within("the error", watch.next()).await, Err(compacted));
    let mut watch = store.watch("k/", Some(revision));
    assert_eq!(within("the event", watch.next()).await.unwrap().revision, next);
}

#[tokio::test]
async fn leases_survive_a_restart_and_expire_after_it() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    let (short, long): (LeaseId, LeaseId);
    {
        let store = Store::open_embedded(&path).unwrap();
        short = store.grant_lease(Duration::from_secs(1)).await.unwrap();
        long = store.grant_lease(Duration::from_secs(3600)).await.unwrap();
        let txn = Txn::new().put_with_lease("short", "", short).put_with_lease("long", "", long);
        store.commit(txn).await.unwrap();
    }
    let store = Store::open_embedded(&path).unwrap();
    let mut watch = store.watch("", Some(store.revision().await.unwrap()));
    assert_eq!(store.keep_alive(long).await.unwrap(), Duration::from_secs(3600));
    let batch = within("the expiry", watch.next()).await.unwrap();
    assert_eq!(batch.events.len(), 1);
    assert_eq!(batch.events[0].key(), "short");
    assert!(store.keep_alive(short).await.is_err());
    let kept = store.get("long").await.unwrap().unwrap();
    assert_eq!(kept.lease, Some(long));
    store.revoke(long).await.unwrap();
    drop(store);
    let store = Store::open_embedded(&path).unwrap();
    assert!(store.keep_alive(long).await.is_err(), "ended is ended");
    assert_eq!(store.get("long").await.unwrap(), None);
}

#[tokio::test]
async fn strangers_are_refused_and_left_alone() {
    let dir = temp_dir();
    let text = dir.path().join("text");
    fs::write(&text, "not a database, but longer than its header would be. ".repeat(100)).unwrap();
    assert!(matches!(refused(&text), Error::Foreign { .. }));
    let short = dir.path().join("short");
    fs::write(&short, "x").unwrap();
    assert!(matches!(refused(&short), Error::Foreign { .. }));

    let other = dir.path().join("other.db");
    rusqlite::Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1);")
        .unwrap();
    assert!(matches!(refused(&other), Error::Foreign { .. }));

    assert!(matches!(Store::open_embedded(dir.path()), Err(Error::Foreign { .. })));
    let below_a_file = text.join("store.db");
    assert!(matches!(Store::open_embedded(&below_a_file), Err(Error::Io { .. })));
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("nowhere"), &dangling).unwrap();
    assert!(matches!(Store::open_embedded(&dangling), Err(Error::Io { .. })));
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    filled(&path).await;
    let set = |format: u32| {
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.pragma_update(None, "user_version", format).unwrap();
    };
    set(7);
    let error = refused(&path);
    assert!(matches!(error, Error::NewerFormat { found: 7, supported: 1, .. }));
    assert!(error.to_string().contains("newer coracle"));
    set(1);
    Store::open_embedded(&path).unwrap();
}

#[tokio::test]
async fn an_emptied_or_lost_file_is_not_replaced() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    filled(&path).await;
    fs::write(&path, "").unwrap();
    assert!(matches!(refused(&path), Error::Corrupt { .. }));

    // Lost, but its log is still there: a crash came before.
    fs::remove_file(&path).unwrap();
    fs::write(dir.path().join("store.db-wal"), "log").unwrap();
    assert!(matches!(refused(&path), Error::Corrupt { .. }));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_cut_file_is_damaged() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    filled(&path).await;
    let whole = fs::read(&path).unwrap();
    for kept in [100, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        fs::write(&path, &whole[..kept]).unwrap();
        let error = refused(&path);
        assert!(matches!(error, Error::Corrupt { .. } | Error::Foreign { .. }), "cut to {kept}: {error:?}");
    }
    fs::write(&path, &whole).unwrap();
    Store::open_embedded(&path).unwrap();
}

#[tokio::test]
async fn overwritten_pages_are_damage() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    filled(&path).await;
    let whole = fs::read(&path).unwrap();
    let pages = whole.len() / 4096;
    let mut found = 0;
    for page in 0..pages {
        fs::write(&path, &whole).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xA5; 4096], page as u64 * 4096).unwrap();
        drop(file);
        match Store::open_embedded(&path) {
            Err(Error::Corrupt { .. } | Error::Foreign { .. }) => found += 1,
            Err(error) => panic!("page {page}: {error:?}"),
            Ok(_) => panic!("page {page} of {pages}: damage not seen"),
        }
    }
    assert_eq!(found, pages);
}

/// Damage that comes while the store is open is an error of the call that meets it, never a panic.
#[tokio::test]
async fn damage_while_open_is_an_error() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    filled(&path).await;
    let store = Store::open_embedded(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xA5; length as usize - 4096], 4096).unwrap();
    let got = store.get("k/100").await.unwrap_err();
    assert!(matches!(got, Error::Corrupt { .. }), "{got:?}");
    let ranged = store.range(Range::prefix("k/")).await.unwrap_err();
    assert!(matches!(ranged, Error::Corrupt { .. }), "{ranged:?}");
    // The writer has its own copies of some pages.
    for txn in [Txn::new().put("k/100", "x"), Txn::new().delete_prefix("k/")] {
        if let Err(refused) = store.commit(txn).await {
            let error = error(Err(refused));
            assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        }
    }
}

/// The structure is whole, so that only the row's checksum can tell.
#[tokio::test]
async fn a_flipped_bit_in_a_value_is_an_error_of_its_key() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    {
        let store = Store::open_embedded(&path).unwrap();
        let txn = Txn::new().put("bad", "find me here").put("good", "1");
        store.commit(txn).await.unwrap();
    }
    let mut bytes = fs::read(&path).unwrap();
    let value = b"find me here";
    let at = bytes.windows(value.len()).position(|w| w == value).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let store = Store::open_embedded(&path).unwrap();
    for error in [store.get("bad").await.unwrap_err(), store.range(Range::prefix("")).await.unwrap_err()] {
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("bad"), "{error}");
    }
    assert!(store.get("good").await.unwrap().is_some());
    // Writing it anew heals it.
    store.commit(Txn::new().put("bad", "new")).await.unwrap();
    assert_eq!(&store.get("bad").await.unwrap().unwrap().value[..], b"new");
}

#[tokio::test]
async fn a_draft_left_by_a_crash_hinders_nothing() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    fs::write(dir.path().join("store.db.new-0123456789abcdef"), "half").unwrap();
    filled(&path).await;
    Store::open_embedded(&path).unwrap();
}

/// Commits whose callers did not wait: queued is queued.
#[tokio::test]
async fn dropping_the_last_handle_finishes_what_is_queued() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    let store = Store::open_embedded(&path).unwrap();
    for n in 0..300 {
        let commit = store.commit(Txn::new().put(format!("k/{n}"), "x"));
        tokio::select! {
            biased;
            committed = commit => drop(committed.unwrap()),
            _ = std::future::ready(()) => {}
        }
    }
    drop(store);
    assert_eq!(beside(&path), std::slice::from_ref(&path), "it is closed when the handle is gone");
    let store = Store::open_embedded(&path).unwrap();
    assert_eq!(store.range(Range::prefix("k/")).await.unwrap().kvs.len(), 300);
}
