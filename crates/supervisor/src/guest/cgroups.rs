//! The machine's control groups: `/task/<container>`, version 2.
//!
//! The machine has more memory than the task: the supervisor and the kernel are outside of `/task`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
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

/// Makes the task's group, with the limits that its containers have together.
///
/// # Errors
/// The kernel has no memory or pids controller.
pub fn make_task_group(setup: &GuestSetup) -> Result<()> {
    let dir = Path::new(UNIFIED_ROOT).join(TASK.trim_start_matches('/'));
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
