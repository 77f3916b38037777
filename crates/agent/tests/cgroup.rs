//! Limits hold, on whichever cgroup version this host has. Needs root.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::cgroup::{Cgroups, Limits, TaskCgroup};
use agent::instance::Instance;
use model::TaskId;

const DEADLINE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// The groups of one test, gone when it ends, however it ends.
struct Host {
    cgroups: Cgroups,
    _state_dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let state_dir = tempfile::tempdir().unwrap();
        let instance = Instance::of(state_dir.path()).unwrap();
        Self { cgroups: Cgroups::detect(&instance).unwrap(), _state_dir: state_dir }
    }

    fn task(&self, limits: &Limits) -> TaskCgroup {
        self.cgroups.create_task(&task_id(1), limits).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let ended = self.cgroups.teardown(DEADLINE);
        if !std::thread::panicking() {
            ended.unwrap();
            assert_eq!(self.cgroups.list().unwrap(), []);
        }
    }
}

fn task_id(bits: u128) -> TaskId {
    TaskId::from_random(bits)
}

fn limits() -> Limits {
    Limits { cpu_units: 1024, memory_bytes: 256 * MIB, pids_max: 64 }
}

/// Starts a shell script inside the task: the shell waits until it was moved there.
fn start(task: &TaskCgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    task.add_pid(child.id().try_into().unwrap()).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn memory_has_a_hard_limit() {
    let host = Host::new();
    let task = host.task(&Limits { memory_bytes: 48 * MIB, ..limits() });
    // tail keeps what has no line end in memory.
    let status = start(&task, "head -c 300000000 /dev/zero | exec tail -n 1; exit 3").wait().unwrap();
    assert!(status.signal().is_some() || status.code() == Some(3), "{status}");
    assert_eq!(task.oom_kills().unwrap(), 1);
    assert_eq!(task.container_oom_kills("supervisor").unwrap(), 1);
    assert_eq!(task.container_oom_kills("../supervisor/x").unwrap(), 0);
    let usage = task.usage().unwrap();
    assert!(usage.memory_peak_bytes.is_none_or(|peak| peak <= 48 * MIB && peak > 40 * MIB), "{usage:?}");
}

#[test]
fn cpu_has_a_quota() {
    let host = Host::new();
    let task = host.task(&Limits { cpu_units: 256, ..limits() });
    let mut child = start(&task, "while :; do :; done");
    wait_until("the task runs into its quota", || task.usage().unwrap().throttled_periods > 2);
    let usage = task.usage().unwrap();
    // Each throttled period gave it a quarter of 100 ms.
    assert!(usage.cpu_ns > 25_000_000, "{usage:?}");
    assert_eq!(usage.pids, 1);
    task.kill_all(DEADLINE).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_fork_bomb_is_stopped_and_removed() {
    let host = Host::new();
    let task = host.task(&Limits { pids_max: 40, ..limits() });
    // One that goes on for ever and starts anew wherever a place becomes free.
    let mut child = start(&task, "bomb() { bomb & bomb & wait; bomb; }; trap '' CHLD; bomb");
    wait_until("the bomb has grown", || task.usage().unwrap().pids >= 20);
    let seen: Vec<u64> = (0..50).map(|_| task.usage().unwrap().pids).collect();
    assert!(seen.iter().all(|pids| *pids <= 40), "{seen:?}");
    task.kill_all(DEADLINE).unwrap();
    assert_eq!(task.processes().unwrap(), Vec::<i32>::new());
    child.wait().unwrap();
    task.remove(DEADLINE).unwrap();
    task.remove(DEADLINE).unwrap();
    task.kill_all(DEADLINE).unwrap();
    assert_eq!(task.usage().unwrap().pids, 0);
}

#[test]
fn a_restarted_agent_finds_its_groups() {
    let host = Host::new();
    let task = host.task(&limits());
    let mut child = start(&task, "exec sleep 1000");
    let again = host.cgroups.clone();
    assert_eq!(again.list().unwrap(), [task_id(1)]);
    let found = again.open_task(&task_id(1));
    assert_eq!(found.processes().unwrap(), [i32::try_from(child.id()).unwrap()]);
    assert_eq!(found.path(), task.path());
    // Creating it again, with other limits both ways, keeps its processes.
    for memory_bytes in [512 * MIB, 128 * MIB] {
        again.create_task(&task_id(1), &Limits { memory_bytes, ..limits() }).unwrap();
    }
    assert_eq!(found.processes().unwrap().len(), 1);
    found.kill_all(DEADLINE).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn what_still_runs_is_not_removed() {
    let host = Host::new();
    let task = host.task(&limits());
    let mut child = start(&task, "exec sleep 1000");
    assert!(task.remove(Duration::ZERO).is_err());
    assert_eq!(task.processes().unwrap().len(), 1);
    task.kill_all(DEADLINE).unwrap();
    child.wait().unwrap();
}

/// Prints what a task's groups cost; asserts nothing about time.
#[test]
fn cost_of_a_task() {
    let host = Host::new();
    let mut create = Vec::new();
    let mut remove = Vec::new();
    for bits in 0..50 {
        let start = Instant::now();
        let task = host.cgroups.create_task(&task_id(bits), &limits()).unwrap();
        create.push(start.elapsed());
        let start = Instant::now();
        task.remove(DEADLINE).unwrap();
        remove.push(start.elapsed());
    }
    for (what, mut times) in [("create", create), ("remove", remove)] {
        times.sort();
        println!("{what}: p50 {:?} p98 {:?}", times[25], times[48]);
    }
}
