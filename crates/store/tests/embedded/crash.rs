//! SIGKILL at any moment: what was acknowledged is there, and nothing is there by half.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{Range, Store, Txn};

use crate::support::temp_dir;

const ROUNDS: u32 = 25;
const WRITERS: u64 = 8;
/// The keys that one transaction writes with one value.
const PARTS: u64 = 5;
const PATH: &str = "CORACLE_STORE_TEST_CRASH";

/// Kills the child when the test fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn acknowledged_transactions_survive_sigkill_whole() {
    let dir = temp_dir();
    let path = dir.path().join("store.db");
    let mut acknowledged = std::collections::BTreeMap::new();
    let mut total = 0;
    for round in 0..ROUNDS {
        for (writer, n) in commit_and_kill(&path, round) {
            let last = acknowledged.entry(writer).or_insert(0);
            *last = n.max(*last);
            total += 1;
        }
        check(&path, &acknowledged).await;
    }
    assert!(total > u64::from(ROUNDS), "only {total} commits in {ROUNDS} rounds");
    println!("{total} acknowledged commits in {ROUNDS} kills");
}

/// Lets a child process commit, kills it at a random moment, and returns what it had acknowledged as
/// (writer, number).
fn commit_and_kill(path: &Path, round: u32) -> Vec<(u64, u64)> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::crash::commit_until_killed", "--ignored", "--nocapture"])
        .env(PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut victim = Victim(child);
    let lines = BufReader::new(victim.0.stdout.take().unwrap());
    let acks_before_kill = rand_below(400);
    let killed_while_opening = round % 5 == 4;
    let started = Instant::now();
    let mut acks = Vec::new();
    if killed_while_opening {
        // At start-up the log is recovered: the moment of the kill is random within it.
        while started.elapsed() < Duration::from_micros(1000 + 10 * acks_before_kill) {
            std::hint::spin_loop();
        }
        victim.0.kill().unwrap();
    }
    for line in lines.lines() {
        // The last line may be cut by the kill; what was not written whole counts as not acknowledged.
        let Some(ack) = line.ok().as_deref().and_then(parse_ack) else {
            continue;
        };
        acks.push(ack);
        if acks.len() as u64 == acks_before_kill {
            victim.0.kill().unwrap();
        }
    }
    acks
}

fn parse_ack(line: &str) -> Option<(u64, u64)> {
    let (writer, n) = line.strip_prefix("ack ")?.strip_suffix('.')?.split_once(' ')?;
    Some((writer.parse().ok()?, n.parse().ok()?))
}

fn rand_below(bound: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    1 + RandomState::new().hash_one(0) % bound
}

async fn check(path: &Path, acknowledged: &std::collections::BTreeMap<u64, u64>) {
    if acknowledged.is_empty() && !path.exists() {
        return;
    }
    let store = Store::open_embedded(path).expect("the store opens after a kill");
    let mut newest = 0;
    for writer in 0..WRITERS {
        let found = store.range(Range::prefix(format!("w/{writer}/"))).await.unwrap();
        let last = acknowledged.get(&writer).copied().unwrap_or(0);
        if found.kvs.is_empty() {
            assert_eq!(last, 0, "writer {writer}: acknowledged {last}, found nothing");
            continue;
        }
        assert_eq!(found.kvs.len() as u64, PARTS, "writer {writer}: half a transaction");
        let first = &found.kvs[0];
        for kv in &found.kvs {
            assert_eq!(kv.mod_revision, first.mod_revision, "writer {writer}: mixed");
            assert_eq!(kv.value, first.value, "writer {writer}: mixed");
        }
        newest = first.mod_revision.0.max(newest);
        let n: u64 = number(&first.value);
        assert!(n >= last, "writer {writer}: acknowledged {last}, found {n}");
        // The log of this writer's transactions has no hole up to there.
        let log = store.range(Range::prefix(format!("log/{writer}/")).keys_only()).await.unwrap();
        assert_eq!(log.kvs.len() as u64, n, "writer {writer}");
    }
    assert!(store.revision().await.unwrap().0 >= newest);
}

fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).unwrap();
    text.split_once(' ').unwrap().0.parse().unwrap()
}

#[test]
#[ignore = "the child process of acknowledged_transactions_survive_sigkill_whole"]
fn commit_until_killed() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open_embedded(Path::new(&path)).unwrap();
        let padding = "x".repeat(3000);
        // Should the parent be gone, the child must not stay.
        let left = Arc::new(AtomicU64::new(20_000));
        let writers = (0..WRITERS).map(|writer| {
            let (store, padding, left) = (store.clone(), padding.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                let mut n = match store.get(&format!("w/{writer}/0")).await.unwrap() {
                    Some(kv) => number(&kv.value),
                    None => 0,
                };
                while left.fetch_sub(1, Ordering::Relaxed) > WRITERS {
                    n += 1;
                    let mut txn = Txn::new()
                        .expect_absent(format!("log/{writer}/{n:08}"))
                        .put(format!("log/{writer}/{n:08}"), "");
                    for part in 0..PARTS {
                        txn = txn.put(format!("w/{writer}/{part}"), format!("{n} {padding}"));
                    }
                    store.commit(txn).await.unwrap();
                    let line = format!("ack {writer} {n}.\n");
                    if std::io::stdout().write_all(line.as_bytes()).is_err() {
                        return;
                    }
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
}
