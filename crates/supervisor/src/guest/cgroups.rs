//! The machine's control groups: `/task/<container>`, version 2.
//!
//! The machine has more memory than the task: the supervisor and the kernel are outside of `/task`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model::sandbox::GuestSetup;

use crate::cgroup::UNIFIED_ROOT;

/// The parent of the containers' groups.
pub const TASK: &str = "/task";

/// Lets groups below this one have all controllers.
pub fn delegate(dir: &Path) -> Result<()> {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        // One at a time: some cannot be had in the company of processes of the root group.
        let result = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        if let Err(error) = result {
            tracing::warn!(controller, %error, "controller not delegated");
        }
    }
    Ok(())
}

/// How long the kernel may take until nothing in a group runs: a process may be in the middle of
/// writing to a disk.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

fn task_dir() -> PathBuf {
    Path::new(UNIFIED_ROOT).join(TASK.trim_start_matches('/'))
}

/// Lets no process of the task run, and returns when none does.
///
/// # Errors
/// The kernel cannot, or does not in time.
pub fn freeze() -> Result<()> {
    let dir = task_dir();
    fs::write(dir.join("cgroup.freeze"), "1").context("freeze the task's control group")?;
    let deadline = Instant::now() + FREEZE_PATIENCE;
    loop {
        let events = fs::read_to_string(dir.join("cgroup.events"))?;
        if events.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("a process of the task could not be frozen within {} seconds", FREEZE_PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Lets the task's processes go on.
///
/// # Errors
/// The kernel's.
pub fn thaw() -> Result<()> {
    fs::write(task_dir().join("cgroup.freeze"), "0").context("thaw the task's control group")
}

/// Makes the task's group, with the limits that its containers have together.
///
/// # Errors
/// The kernel has no memory or pids controller.
pub fn make_task_group(setup: &GuestSetup) -> Result<()> {
    let dir = task_dir();
    fs::create_dir_all(&dir).context("make the task's control group")?;
    delegate(&dir)?;
    let set = |file: &str, value: u64| {
        fs::write(dir.join(file), value.to_string())
            .with_context(|| format!("set the task's {file} to {value}"))
    };
    set("memory.max", u64::from(setup.memory_mib) << 20)?;
    if dir.join("memory.swap.max").exists() {
        set("memory.swap.max", 0)?;
    }
    set("pids.max", setup.pids_max)
}
