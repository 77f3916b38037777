//! Which process the monitor is, for the agent.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

#[derive(Serialize)]
struct Record {
    pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot (proc(5)).
    start_time: u64,
}

/// Writes `DIR/monitor.json`, atomically.
///
/// # Errors
/// The process is gone, or the file cannot be written.
pub fn write(dir: &Path, pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let start_time = start_time(&stat).with_context(|| format!("{path} has no start time"))?;
    let (target, new) = (dir.join("monitor.json"), dir.join("monitor.json.new"));
    fs::write(&new, serde_json::to_vec(&Record { pid, start_time })?)
        .and_then(|()| fs::rename(&new, &target))
        .with_context(|| format!("write {}", target.display()))
}

fn start_time(stat: &str) -> Option<u64> {
    // The command's name may hold spaces and parentheses; the fields follow its last parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::start_time;

    #[test]
    fn the_name_of_the_command_does_not_confuse() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time("7 (cut"), None);
    }
}
