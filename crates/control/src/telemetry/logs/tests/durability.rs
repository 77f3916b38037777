use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const CHILD_DIR: &str = "LOGS_TEST_CHILD_DIR";
const CHILD_FROM: &str = "LOGS_TEST_CHILD_FROM";

/// Not a test: what [`acknowledged_events_survive_a_kill_and_are_stored_once`] runs and kills.
/// Appends numbered events from two sources and says what is acknowledged.
#[tokio::test]
#[ignore = "run by another test as a child process"]
async fn child_that_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let from: u64 = std::env::var(CHILD_FROM).expect("from").parse().expect("number");
    let store = LogStore::open(dir.as_ref(), Clock::system()).expect("open");
    let scope = scope("123456789012");
    let source = async |name: &str| {
        store.ensure_stream(&scope, "g", name, true).await.expect("stream");
        let mut next = from;
        loop {
            // Batches of changing size, so that what is sent again is cut differently.
            let count = 1 + next % 7;
            let events = (next..next + count).map(|i| event(NOW, &i.to_string())).collect();
            next += count;
            let cursor = Cursor { source: name.to_owned(), upto: next };
            store.append(&scope, "g", name, events, Some(cursor)).await.expect("append");
            println!("stored {name} {next}");
        }
    };
    tokio::join!(source("a"), source("b"));
}

#[tokio::test]
async fn acknowledged_events_survive_a_kill_and_are_stored_once() {
    let dir = tempfile::Builder::new().prefix("logs-kill-").tempdir().expect("directory");
    let mut acknowledged = [0_u64; 2];
    for round in 0..4 {
        // The source does not know of the last acknowledgements, and sends again.
        let from = acknowledged.iter().min().expect("two").saturating_sub(20 + round);
        let mut child = KillOnDrop(
            Command::new(std::env::current_exe().expect("test binary"))
                .args([
                    "--exact",
                    "telemetry::logs::tests::durability::child_that_appends_until_it_is_killed",
                ])
                .args(["--ignored", "--nocapture"])
                .env(CHILD_DIR, dir.path())
                .env(CHILD_FROM, from.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .expect("child"),
        );
        let output = BufReader::new(child.0.stdout.take().expect("output"));
        let mut lines = 0;
        for line in output.lines() {
            let line = line.expect("line");
            // The test harness writes its own line before the first of ours.
            if let Some((_, rest)) = line.split_once("stored ") {
                let (name, upto) = rest.split_once(' ').expect("name and number");
                let i = usize::from(name == "b");
                acknowledged[i] = acknowledged[i].max(upto.parse().expect("number"));
                lines += 1;
            }
            if lines == 60 + 17 * round {
                // SIGKILL: nothing of the child runs any more.
                child.0.kill().expect("kill");
            }
        }
        child.0.wait().expect("wait");

        let store = LogStore::open(dir.path(), Clock::system()).expect("open after the kill");
        for (name, acknowledged) in ["a", "b"].into_iter().zip(acknowledged) {
            let stored = store.cursor(name).await.expect("cursor");
            assert!(stored >= acknowledged, "{name}: {stored} of {acknowledged} acknowledged");
            let mut seen = Vec::new();
            let mut query = GetQuery { from_head: true, limit: 1000, ..GetQuery::default() };
            loop {
                let page = store.get(&scope("123456789012"), "g", name, query.clone()).await.expect("get");
                if page.events.is_empty() {
                    break;
                }
                seen.extend(page.events.into_iter().map(|e| e.message.parse::<u64>().expect("number")));
                query.token = Some(page.next_forward);
            }
            assert!(seen.into_iter().eq(0..stored), "{name}: every event once, in order");
        }
    }
}

struct KillOnDrop(std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn ids_are_not_given_out_again_after_a_restart() {
    let mut f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    for i in 0..3 {
        f.put("g", "s", &[(NOW, &format!("{i}"))]).await;
        f = f.reopen();
    }
    let query = FilterQuery { limit: 10, ..FilterQuery::default() };
    let found = f.filter("g", query, "").await;
    assert_eq!(messages(&found), ["0", "1", "2"]);
    assert!(found.is_sorted_by(|a, b| a.event.id < b.event.id));
}

#[tokio::test]
async fn a_second_store_on_one_directory_is_refused() {
    let f = Fixture::new();
    assert!(LogStore::open(f.dir.path(), f.clock.clone()).is_err());
}

#[tokio::test]
async fn empty_messages_move_the_cursor_and_are_not_stored() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    let send = async |messages: &[&str], upto| {
        let events = messages.iter().map(|m| event(NOW, m)).collect();
        let cursor = Some(Cursor { source: "c".into(), upto });
        f.store.append(&f.scope, "g", "s", events, cursor).await.expect("append")
    };
    assert_eq!(send(&["a", "", "b"], 3).await, Appended { stored: 2, repeated: 0 });
    assert_eq!(send(&["", "b", "c"], 4).await, Appended { stored: 1, repeated: 2 });
    assert_eq!(send(&["c"], 4).await, Appended { stored: 0, repeated: 1 });
    f.store.forget_cursors(&["c".to_owned(), "never".to_owned()]).await.expect("forget");
    assert_eq!(f.store.cursor("c").await.expect("cursor"), 0);
}

/// A full disk refuses writes, keeps what is there, and is no reason to restart.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers() {
    let Some(mount) = TmpfsMount::new("100m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let clock = Clock::manual(model::Timestamp(NOW));
    let scope = scope("123456789012");
    let store = LogStore::open(&mount.dir.path().join("logs"), clock.clone()).expect("open");
    store.ensure_stream(&scope, "g", "s", true).await.expect("stream");
    let batch = || vec![event(NOW, "one")];
    store.append(&scope, "g", "s", batch(), None).await.expect("append");
    let filler = mount.dir.path().join("filler");
    std::fs::write(&filler, vec![0; 60 << 20]).expect("fill");
    let refused = store.append(&scope, "g", "s", batch(), None).await;
    assert!(matches!(refused, Err(LogError::DiskFull)), "{refused:?}");
    let query = GetQuery { limit: 10, ..GetQuery::default() };
    assert_eq!(store.get(&scope, "g", "s", query.clone()).await.expect("get").events.len(), 1);
    let create = store.ensure_stream(&scope, "g", "another", false).await;
    assert!(matches!(create, Err(LogError::DiskFull)), "{create:?}");
    // What leads to room is done: expire what is there.
    store.set_retention(&scope, "g", Some(1)).await.expect("retention");
    store.ensure_stream(&scope, "g", "s", true).await.expect("nothing to create");
    clock.advance(2 * DAY_MS);
    assert_eq!(store.sweep().await.expect("sweep").expired_events, 1);
    store.set_retention(&scope, "g", None).await.expect("retention");
    std::fs::remove_file(&filler).expect("make room");
    store.append(&scope, "g", "s", batch(), None).await.expect("append again");
    assert_eq!(store.get(&scope, "g", "s", query).await.expect("get").events.len(), 1);
}

/// A file system of its own size; unmounted when dropped.
struct TmpfsMount {
    dir: tempfile::TempDir,
}

impl TmpfsMount {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("logs-tmpfs-").tempdir().expect("directory");
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir })
    }
}

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        // Lazily: the store may still hold files when a test fails.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However a source cuts and repeats its events, each is stored once.
    #[test]
    fn repeated_batches_are_stored_once(cuts in prop::collection::vec((0..30_u64, 1..12_u64), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let f = Fixture::new();
            f.group("g").await;
            f.stream("g", "s").await;
            let mut known = 0_u64;
            for (back, count) in cuts {
                // A source may go back as far as it likes, but never leaves a gap.
                let first = known.saturating_sub(back);
                let upto = first + count;
                let events = (first..upto).map(|i| event(NOW, &i.to_string())).collect();
                let cursor = Some(Cursor { source: "c".into(), upto });
                let appended = f.store.append(&f.scope, "g", "s", events, cursor).await.expect("append");
                assert_eq!(appended.stored as u64, upto.saturating_sub(known));
                known = known.max(upto);
                assert_eq!(f.store.cursor("c").await.expect("cursor"), known);
            }
            let page = f.get("g", "s", GetQuery { from_head: true, limit: 10_000, ..GetQuery::default() }).await;
            let seen = page.events.into_iter().map(|e| e.message.parse::<u64>().expect("number"));
            assert!(seen.eq(0..known));
        });
    }
}
