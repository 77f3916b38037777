//! A full disk: a small tmpfs of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use store::{Error, Range, Store, Txn, WatchError};

use crate::support::{error, eventually, fresh, temp_dir, within};

const TTL: Duration = Duration::from_secs(1);

/// A mounted tmpfs, unmounted when dropped.
struct SmallDisk {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with the reason printed, if this process may not mount.
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = temp_dir();
        let at = dir.path().join("disk");
        fs::create_dir(&at).unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "store-test"])
            .arg(&at)
            .output();
        match output {
            Ok(output) if output.status.success() => Some(SmallDisk { at, _dir: dir }),
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr);
                println!("skipped: cannot mount a tmpfs: {}", reason.trim());
                None
            }
            Err(error) => {
                println!("skipped: cannot run mount: {error}");
                None
            }
        }
    }

    /// Takes all space that is left.
    fn fill(&self) -> PathBuf {
        let filler = self.at.join("filler");
        let file = fs::File::create(&filler).unwrap();
        fill(&file);
        filler
    }
}

/// Writes until there is no space for one byte.
fn fill(mut file: &fs::File) {
    use std::io::Write;
    let mut chunk = 1 << 20;
    while chunk > 0 {
        match file.write(&vec![0; chunk]) {
            Ok(0) | Err(_) => chunk /= 2,
            Ok(_) => {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failing test may still have the store open.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

async fn commit_until_full(store: &Store) -> (u64, Error) {
    for n in 0.. {
        let txn = Txn::new()
            .put(format!("fill/{n:06}/a"), vec![1; 20_000])
            .put(format!("fill/{n:06}/b"), vec![2; 20_000]);
        if let Err(refused) = store.commit(txn).await {
            return (n, error(Err(refused)));
        }
    }
    unreachable!("the disk is small")
}

fn reopen(path: &Path) -> Store {
    Store::open_embedded(path).unwrap()
}

#[tokio::test]
async fn a_full_disk_refuses_commits_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("12m") else {
        return;
    };
    let path = disk.at.join("state/store.db");
    let store = reopen(&path);
    let mut watch = store.watch("after/", None);
    store.commit(Txn::new().put("first", "1")).await.unwrap();
    let filler = disk.at.join("filler");
    fs::write(&filler, vec![0; 4 << 20]).unwrap();

    let (committed, refused) = commit_until_full(&store).await;
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("no space") && text.contains("store.db"), "{text}");
    assert!(committed > 10);
    let (again, _) = commit_until_full_from(&store, committed).await;

    // It serves what it has.
    let found = store.range(Range::prefix("fill/").keys_only()).await.unwrap();
    assert_eq!(found.kvs.len() as u64, 2 * again);
    assert_eq!(&store.get("first").await.unwrap().unwrap().value[..], b"1");

    // Space returns: it goes on where it was, without being opened again.
    let before = store.revision().await.unwrap();
    fs::remove_file(&filler).unwrap();
    let after = store.commit(Txn::new().put("after/1", vec![3; 100_000])).await.unwrap();
    assert_eq!(after.0, before.0 + 1);
    let batch = within("the event", watch.next()).await.unwrap();
    assert_eq!(batch.revision, after);
    drop(store);

    let store = reopen(&path);
    let found = store.range(Range::prefix("fill/")).await.unwrap();
    assert_eq!(found.kvs.len() as u64, 2 * again);
    assert!(found.kvs.iter().all(|kv| kv.value.len() == 20_000));
    assert_eq!(store.get("after/1").await.unwrap().unwrap().mod_revision, after);
}

/// Goes on after `n` commits; returns how many there are then.
async fn commit_until_full_from(store: &Store, mut n: u64) -> (u64, Error) {
    loop {
        let txn = Txn::new()
            .put(format!("fill/{n:06}/a"), vec![1; 20_000])
            .put(format!("fill/{n:06}/b"), vec![2; 20_000]);
        match store.commit(txn).await {
            Ok(_) => n += 1,
            refused => return (n, error(refused)),
        }
    }
}

/// In a batch that does not fit, what fits alone is committed, and each is told its own outcome.
#[tokio::test]
async fn a_transaction_too_large_for_the_space_does_not_fail_its_neighbours() {
    let Some(disk) = SmallDisk::mount("12m") else {
        return;
    };
    let path = disk.at.join("store.db");
    let store = reopen(&path);
    store.commit(Txn::new().put("first", "1")).await.unwrap();
    fs::write(disk.at.join("filler"), vec![0; 8 << 20]).unwrap();
    let large = (0..5).fold(Txn::new(), |txn, n| txn.put(format!("large/{n}"), vec![n; 1_500_000]));
    let (small, large, other) = tokio::join!(
        store.commit(Txn::new().put("small/1", "x")),
        store.commit(large),
        store.commit(Txn::new().put("small/2", "x")),
    );
    small.unwrap();
    assert!(matches!(error(large), Error::NoSpace { .. }));
    other.unwrap();
    assert_eq!(store.range(Range::prefix("small/")).await.unwrap().kvs.len(), 2);
    assert!(store.range(Range::prefix("large/")).await.unwrap().kvs.is_empty());
}

#[tokio::test]
async fn a_store_opens_and_reads_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return;
    };
    let path = disk.at.join("store.db");
    let store = reopen(&path);
    store.commit(Txn::new().put("first", vec![1; 100_000])).await.unwrap();
    let lease = store.grant_lease(TTL).await.unwrap();
    store.commit(Txn::new().put_with_lease("leased", "", lease)).await.unwrap();
    let filler = disk.fill();
    assert_eq!(store.get("first").await.unwrap().unwrap().value.len(), 100_000);
    let large = Txn::new().put("large", vec![1; 1_000_000]);
    assert!(matches!(error(store.commit(large).await), Error::NoSpace { .. }));
    // The lease ends while there is no space: a younger one elsewhere tells when. Its key goes when there is.
    let (elsewhere, _dir) = fresh();
    let younger = elsewhere.grant_lease(TTL).await.unwrap();
    let txn = Txn::new().put_with_lease("leased", "", younger);
    elsewhere.commit(txn).await.unwrap();
    eventually("the end of the younger lease", async || {
        let gone = elsewhere.get("leased").await.unwrap().is_none();
        gone.then_some(())
    })
    .await;
    assert!(store.keep_alive(lease).await.is_err());
    fs::remove_file(&filler).unwrap();
    eventually("the deletion of its key", async || {
        store.get("leased").await.unwrap().is_none().then_some(())
    })
    .await;

    // A new store, and a backup, do not fit.
    let filler = disk.fill();
    let copy = store.backup(&disk.at.join("copy.db")).await.unwrap_err();
    assert!(matches!(copy, Error::NoSpace { .. }), "{copy:?}");
    let new = Store::open_embedded(&disk.at.join("new/store.db")).unwrap_err();
    assert!(matches!(new, Error::NoSpace { .. }), "{new:?}");
    fs::remove_file(&filler).unwrap();
    Store::open_embedded(&disk.at.join("new/store.db")).unwrap();
    store.backup(&disk.at.join("copy.db")).await.unwrap();

    let mut watch = store.watch("", None);
    drop(store);
    assert_eq!(within("the end", watch.next()).await, Err(WatchError::Closed));
}
