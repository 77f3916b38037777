//! How long a start takes: printed, never asserted.
//!
//! `cargo test -p supervisor --test timing -- --nocapture`; with `SUPERVISOR=PATH` for a program
//! other than the one under test, such as the static release.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::TestSandbox;
use model::sandbox::SandboxPhase;

const STARTS: usize = 20;

#[test]
fn from_run_to_the_first_output_and_memory() {
    let mut starts = Vec::new();
    let mut idle = Vec::new();
    let mut running = Vec::new();
    for _ in 0..STARTS {
        let mut sandbox = TestSandbox::start();
        sandbox.wait("idleness", |sandbox| sandbox.state.phase == SandboxPhase::Idle);
        // Memory is given back after a quarter of a second without work.
        std::thread::sleep(Duration::from_millis(400));
        idle.push(memory_kib(sandbox.pid));
        let mut app = sandbox.shell("app", "");
        app.spec.command = Some(["/bin/sh", "-c", "echo up; exec sleep 1000"].map(str::to_owned).to_vec());
        let spec = sandbox.spec(vec![app]);
        let begin = Instant::now();
        sandbox.run(spec);
        sandbox.wait("output", |sandbox| sandbox.text("app") == "up");
        starts.push(begin.elapsed());
        std::thread::sleep(Duration::from_millis(400));
        running.push(memory_kib(sandbox.pid));
    }
    starts.sort();
    println!(
        "Run to first output: p50 {:.1} ms, best {:.1} ms, worst {:.1} ms ({STARTS} starts)",
        milliseconds(starts[STARTS / 2]),
        milliseconds(starts[0]),
        milliseconds(starts[STARTS - 1]),
    );
    for (name, mut samples) in [("idle", idle), ("running", running)] {
        samples.sort_unstable();
        let (resident, private) = samples[STARTS / 2];
        println!("{name} supervisor: {resident} KiB resident, of which {private} KiB its own");
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Resident memory, and what of it no other process shares.
fn memory_kib(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let sum = |names: &[&str]| -> u64 {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .sum()
    };
    (sum(&["Rss"]), sum(&["Private_Clean", "Private_Dirty"]))
}
