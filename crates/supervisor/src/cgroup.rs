//! What the supervisor asks of control groups beside what libcontainer sets: out-of-memory kills,
//! stragglers, removal. Version 1, version 2, and both at once.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROOT: &str = "/sys/fs/cgroup";

/// The controllers of version 1 that libcontainer manages.
const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// A control group in every hierarchy that has it.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// The group's directories: one for version 2, one for each hierarchy of version 1.
    dirs: Vec<PathBuf>,
    /// Of these the one that accounts memory.
    memory: PathBuf,
    unified: bool,
}

impl Cgroup {
    /// The group with libcontainer's `cgroupsPath`.
    pub fn at(path: &str) -> Self {
        let relative = path.trim_start_matches('/');
        let root = Path::new(ROOT);
        if root.join("cgroup.controllers").exists() {
            let dir = root.join(relative);
            return Self { dirs: vec![dir.clone()], memory: dir, unified: true };
        }
        // Only mounts of version 1 have this file; links such as `cpu` to `cpu,cpuacct` do no harm.
        let mut dirs: Vec<PathBuf> = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .filter(|dir| dir.join("cgroup.clone_children").exists())
            .map(|dir| dir.join(relative))
            .collect();
        dirs.sort();
        Self { dirs, memory: root.join("memory").join(relative), unified: false }
    }

    /// How many of the group's processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// For version 1: where a container's own group in each hierarchy is, and the names under which
    /// it is looked for below `/sys/fs/cgroup`. Empty for version 2, which is mounted.
    pub fn views(&self) -> Vec<(PathBuf, String)> {
        let mut views = Vec::new();
        if self.unified {
            return views;
        }
        for dir in &self.dirs {
            let hierarchy = dir.strip_prefix(ROOT).ok().and_then(|path| path.iter().next());
            let Some(name) = hierarchy.and_then(|name| name.to_str()) else { continue };
            // Those that libcontainer makes the group in; controllers that share a hierarchy are
            // found under the names of each and of all.
            if name.split(',').any(|part| CONTROLLERS.contains(&part)) {
                views.push((dir.clone(), name.to_owned()));
                if name.contains(',') {
                    views.extend(name.split(',').map(|part| (dir.clone(), part.to_owned())));
                }
            }
        }
        views
    }

    /// Whether the kernel can limit the group's swap.
    pub fn counts_swap(&self) -> bool {
        if !self.unified {
            return Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists();
        }
        // The root group has no such file: look at where the group is, or will be.
        self.memory
            .ancestors()
            .take_while(|dir| *dir != Path::new(ROOT))
            .any(|dir| dir.join("memory.swap.max").exists())
    }

    /// The group's directories, to put a process into.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Kills every process of the group.
    pub fn kill_all(&self) {
        let Some(dir) = self.dirs.iter().find(|dir| dir.exists()) else { return };
        if fs::write(dir.join("cgroup.kill"), b"1").is_ok() {
            return;
        }
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Removes the group. `false` while it still has processes.
    pub fn remove(&self) -> bool {
        let mut is_gone = true;
        for dir in &self.dirs {
            is_gone &= match fs::remove_dir(dir) {
                Err(error) => error.kind() == ErrorKind::NotFound,
                Ok(()) => true,
            };
        }
        is_gone
    }
}
