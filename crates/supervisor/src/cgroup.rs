//! Control groups of containers, versions 1 and 2.
//!
//! Limits are set here, between the creation of a container's process and the start of its program.
//! With version 2 libcontainer makes the group and puts the process there. With version 1 that is
//! too slow: to write another process's pid to `cgroup.procs` the kernel waits for a
//! grace period of RCU (5 to 20 ms), with a lock that every fork on the host needs. A process that
//! moves itself by its thread's number, to `tasks`, waits for nothing. So the supervisor moves
//! itself into the new group, lets libcontainer fork the container's process there, and moves back.
//! libcontainer is shown no hierarchy of version 1.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model::spec::ContainerSpec;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::device_rules::{self, Rule};
use crate::sys;

/// Where version 2 is mounted, for libcontainer, too.
pub const UNIFIED_ROOT: &str = "/sys/fs/cgroup";
/// Where the supervisor has the hierarchies of version 1. libcontainer finds hierarchies by the last
/// part of their mount points, hence the suffix.
const SPLIT_ROOT: &str = "/cgroup";
const SPLIT_SUFFIX: &str = ".v1";

/// Controllers of version 1 whose hierarchies containers are put into. Not `cpuset`: a group there
/// takes no process before its CPUs are set, and nothing of a task sets them. Not named hierarchies,
/// which are the host's service manager's.
const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];
const MIB: u64 = 1024 * 1024;
/// The kernel takes no smaller weight.
const MIN_CPU_SHARES: u32 = 2;

/// A container's control group.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// The group's directories: one for version 2, one for each hierarchy of version 1.
    dirs: Vec<PathBuf>,
    /// Of these the one that accounts memory.
    memory: PathBuf,
    pub is_unified: bool,
}

/// The supervisor's stay in a group of version 1.
#[must_use]
pub struct Stay {
    /// The `tasks` files of the groups that it came from.
    origins: Vec<PathBuf>,
}

impl Cgroup {
    /// The group with this path from the roots of the hierarchies.
    pub fn at(path: &str) -> Self {
        let relative = path.trim_start_matches('/');
        let unified = Path::new(UNIFIED_ROOT);
        if unified.join("cgroup.controllers").exists() {
            let dir = unified.join(relative);
            return Self { dirs: vec![dir.clone()], memory: dir, is_unified: true };
        }
        let dirs = hierarchies().into_iter().map(|(_, root)| root.join(relative)).collect();
        Self { dirs, memory: split_mount("memory").join(relative), is_unified: false }
    }

    /// Makes a group of version 1 and moves this process there. Nothing for version 2.
    ///
    /// # Errors
    /// The group cannot be made or entered; this process is where it was.
    pub fn enter(&self) -> Result<Stay> {
        if self.is_unified {
            return Ok(Stay { origins: Vec::new() });
        }
        let origins = own_groups().context("find the supervisor's own control groups")?;
        let stay = Stay { origins };
        for dir in &self.dirs {
            let entered = fs::create_dir_all(dir).and_then(|()| move_to(&dir.join("tasks")));
            if let Err(error) = entered {
                stay.end()?;
                return Err(error).with_context(|| format!("control group {}", dir.display()));
            }
        }
        Ok(stay)
    }

    /// Makes sure that a process is in the group: an agent may have moved the supervisor during its
    /// stay. Slow only if it is not.
    ///
    /// # Errors
    /// The kernel refuses to move the process.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        for dir in &self.dirs {
            let procs = dir.join("cgroup.procs");
            let is_there = fs::read_to_string(&procs)?.lines().any(|line| line.parse() == Ok(pid));
            if !is_there {
                tracing::warn!(pid, group = %dir.display(), "process moved into its control group late");
                fs::write(&procs, pid.to_string()).with_context(|| format!("enter {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Sets a container's limits on its group.
    ///
    /// # Errors
    /// The kernel refuses a value, or has no controller for a limit that was asked for.
    pub fn limit(&self, spec: &ContainerSpec) -> Result<()> {
        if self.is_unified { self.limit_unified(spec) } else { self.limit_split(spec) }
    }

    /// Leaves the group only the devices of these rules.
    ///
    /// # Errors
    /// The kernel refuses a rule, or (with version 2) has no programs for control groups.
    pub fn limit_devices(&self, rules: &[Rule]) -> Result<()> {
        if self.is_unified {
            let group = File::open(&self.memory)?;
            return sys::bpf::filter_devices(&group, &device_rules::program(rules)).context("filter devices");
        }
        self.write_split("devices", "devices.deny", "a")?;
        rules.iter().try_for_each(|rule| self.write_split("devices", "devices.allow", &rule.to_string()))
    }

    /// Source: "Control Group v2" in the kernel's documentation.
    fn limit_unified(&self, spec: &ContainerSpec) -> Result<()> {
        let dir = &self.memory;
        let set = |file: &str, value: u64| {
            fs::write(dir.join(file), value.to_string()).with_context(|| format!("set {file} to {value}"))
        };
        // Without the controller the containers share evenly; the task's own limit holds anyway.
        if dir.join("cpu.weight").exists() {
            set("cpu.weight", cpu_weight(spec.cpu_shares))?;
        }
        if let Some(limit) = spec.memory_mib {
            set("memory.max", u64::from(limit) * MIB)?;
            if self.counts_swap() {
                set("memory.swap.max", 0)?;
            }
        }
        if let Some(reservation) = spec.memory_reservation_mib {
            set("memory.low", u64::from(reservation) * MIB)?;
        }
        Ok(())
    }

    fn limit_split(&self, spec: &ContainerSpec) -> Result<()> {
        self.write_split("cpu", "cpu.shares", &spec.cpu_shares.max(MIN_CPU_SHARES).to_string())?;
        if let Some(limit) = spec.memory_mib {
            let bytes = (u64::from(limit) * MIB).to_string();
            self.write_split("memory", "memory.limit_in_bytes", &bytes)?;
            if self.counts_swap() {
                self.write_split("memory", "memory.memsw.limit_in_bytes", &bytes)?;
            }
        }
        if let Some(reservation) = spec.memory_reservation_mib {
            let bytes = (u64::from(reservation) * MIB).to_string();
            self.write_split("memory", "memory.soft_limit_in_bytes", &bytes)?;
        }
        Ok(())
    }

    /// Writes a file of the group in the hierarchy of a controller of version 1, if there is one.
    fn write_split(&self, controller: &str, file: &str, value: &str) -> Result<()> {
        let of_controller = |dir: &&PathBuf| hierarchy(dir).split(',').any(|part| part == controller);
        let Some(dir) = self.dirs.iter().find(of_controller) else { return Ok(()) };
        fs::write(dir.join(file), value).with_context(|| format!("set {file} to {value}"))
    }

    /// How many of the group's processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.is_unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// For version 1: where a container's own group in each hierarchy is, and the names under which
    /// it is looked for below `/sys/fs/cgroup`. Empty for version 2, which is mounted.
    pub fn views(&self) -> Vec<(PathBuf, String)> {
        let mut views = Vec::new();
        for dir in self.dirs.iter().filter(|_| !self.is_unified) {
            let name = hierarchy(dir);
            views.push((dir.clone(), name.to_owned()));
            if name.contains(',') {
                // Controllers that share a hierarchy are found under the name of each, too.
                views.extend(name.split(',').map(|part| (dir.clone(), part.to_owned())));
            }
        }
        views
    }

    /// Whether the kernel can limit the group's swap.
    pub fn counts_swap(&self) -> bool {
        if !self.is_unified {
            return split_mount("memory").join("memory.memsw.limit_in_bytes").exists();
        }
        // The root group has no such file: look at where the group is, or will be.
        let groups = self.memory.ancestors().take_while(|dir| *dir != Path::new(UNIFIED_ROOT));
        groups.into_iter().any(|dir| dir.join("memory.swap.max").exists())
    }

    /// Moves this process into the group, for good, to the process `first` of it. A privileged
    /// container may have made groups in its own, which takes no processes then.
    pub fn join(&self, first: Pid) -> Result<()> {
        let file = if self.is_unified { "cgroup.procs" } else { "tasks" };
        for dir in &self.dirs {
            match move_to(&dir.join(file)) {
                Err(error) if self.is_unified && error.kind() == ErrorKind::ResourceBusy => {
                    let text = fs::read_to_string(format!("/proc/{first}/cgroup"))?;
                    let group = group_in(&text, "").context("the container has no control group")?;
                    let group = Path::new(UNIFIED_ROOT).join(group.trim_start_matches('/'));
                    move_to(&group.join(file)).with_context(|| format!("enter {}", group.display()))?;
                }
                other => other.with_context(|| format!("enter {}", dir.display()))?,
            }
        }
        Ok(())
    }

    /// Kills every process of the group.
    pub fn kill_all(&self) {
        let Some(dir) = self.dirs.first() else { return };
        if self.is_unified && fs::write(dir.join("cgroup.kill"), b"1").is_ok() {
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
            is_gone &= match remove_group(dir) {
                Err(error) => error.kind() == ErrorKind::NotFound,
                Ok(()) => true,
            };
        }
        is_gone
    }
}

impl Stay {
    /// Moves this process back to where it was.
    ///
    /// # Errors
    /// Its groups are gone.
    pub fn end(self) -> Result<()> {
        for tasks in &self.origins {
            move_to(tasks).with_context(|| format!("go back to {}", tasks.display()))?;
        }
        Ok(())
    }
}

/// Version 2's weight (1 to 10000) for version 1's shares (2 to 262144), as runtimes convert them.
fn cpu_weight(shares: u32) -> u64 {
    let shares = u64::from(shares).clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// Removes a group, and those in it, which a privileged container may have made.
fn remove_group(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
        other => return other,
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Moves this process, by the number that stands for the writer.
fn move_to(file: &Path) -> io::Result<()> {
    fs::write(file, b"0")
}

/// Where the supervisor has the hierarchy of version 1 with this name.
pub fn split_mount(name: &str) -> PathBuf {
    Path::new(SPLIT_ROOT).join(format!("{name}{SPLIT_SUFFIX}"))
}

/// The mounted hierarchies of version 1 that containers are put into, with their names.
fn hierarchies() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(SPLIT_ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| (hierarchy(&entry.path()).to_owned(), entry.path()))
        .filter(|(name, _)| name.split(',').any(|part| CONTROLLERS.contains(&part)))
        .collect();
    found.sort();
    found
}

/// The name of the hierarchy of version 1 that a directory is in.
fn hierarchy(dir: &Path) -> &str {
    let first = dir.strip_prefix(SPLIT_ROOT).ok().and_then(|path| path.iter().next());
    first.and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SPLIT_SUFFIX)).unwrap_or_default()
}

/// The `tasks` files of this process's own groups in those hierarchies.
fn own_groups() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    hierarchies()
        .into_iter()
        .map(|(name, root)| {
            let path = group_in(&text, &name).with_context(|| format!("no group in {name}"))?;
            Ok(root.join(path.trim_start_matches('/')).join("tasks"))
        })
        .collect()
}

/// From `/proc/self/cgroup`, the group in the hierarchy that has any of the named controllers; an
/// empty name stands for version 2.
fn group_in<'a>(text: &'a str, names: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it = controllers.split(',').any(|one| names.split(',').any(|name| name == one));
        is_it.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_are_read() {
        let text = "9:name=systemd:/a\n4:memory:/task/x\n2:cpu,cpuacct:/b:c\n0::/\n";
        assert_eq!(group_in(text, "memory"), Some("/task/x"));
        assert_eq!(group_in(text, "cpu,cpuacct"), Some("/b:c"));
        assert_eq!(group_in(text, "cpuacct"), Some("/b:c"));
        assert_eq!(group_in(text, "pids"), None);
        assert_eq!(group_in(text, ""), Some("/"));
    }

    #[test]
    fn weights() {
        assert_eq!([0, 2, 1024, 262_144, u32::MAX].map(cpu_weight), [1, 1, 39, 10_000, 10_000]);
    }

    #[test]
    fn hierarchies_have_names() {
        assert_eq!(hierarchy(Path::new("/cgroup/cpu,cpuacct.v1/a/b")), "cpu,cpuacct");
        assert_eq!(hierarchy(Path::new("/sys/fs/cgroup/a")), "");
    }
}
