//! Control groups: a task's CPU, memory and process limits, on cgroup v1 and v2.
//!
//! Layout, the same on both: `/coracle-<instance>/<task>` carries the task's limits and holds no
//! process itself; `…/<task>/supervisor` holds the supervisor, and each container has
//! `…/<task>/<container>`, which libcontainer makes from [`TaskCgroup::path`] as `cgroupsPath`.
//! All of it counts towards the task. The group is at the root of the hierarchy, as Docker's
//! `cgroupfs` driver does it, and not below the agent's own: a service manager that stops the
//! agent's group must not stop the tasks.
//!
//! Every call blocks: creation and reading for some 100 µs, [`TaskCgroup::kill_all`] and
//! [`TaskCgroup::remove`] until their deadline.

mod mounts;
mod tree;
mod v1;
mod v2;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::TaskId;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// The leaf for a task's supervisor.
const SUPERVISOR: &str = "supervisor";

/// Length of a CFS period, in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Limits of a whole task. What its containers get among themselves is libcontainer's matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// 1024 units are one CPU: a hard ceiling (CFS quota), and the weight against other tasks.
    pub cpu_units: u64,
    /// Bytes, page cache and kernel memory included. There is no swap on top.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids_max: u64,
}

impl Limits {
    /// Limits for a task of this size. Fargate documents no limit of processes; ours is 4096 for
    /// each started vCPU: far more than programs of that size use, far less than what makes a
    /// host suffer.
    #[must_use]
    pub fn of(cpu_units: u32, memory_mib: u32) -> Self {
        Self {
            cpu_units: cpu_units.into(),
            memory_bytes: u64::from(memory_mib) << 20,
            pids_max: 4096 * u64::from(cpu_units.div_ceil(1024).max(1)),
        }
    }

    fn cpu_quota_us(&self) -> u64 {
        // The kernel takes no quota below 1 ms.
        (self.cpu_units * CPU_PERIOD_US / 1024).max(1000)
    }

    /// Weight in cgroup v1's scale, 2 to 262144; a unit is a share, as in Docker and ECS.
    fn cpu_shares(&self) -> u64 {
        self.cpu_units.clamp(2, 262_144)
    }
}

/// What a task has used and uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since the start, in nanoseconds.
    pub cpu_ns: u64,
    /// CFS periods in which the task ran into its quota.
    pub throttled_periods: u64,
    /// All that is charged to the task, in bytes.
    pub memory_bytes: u64,
    /// The part of `memory_bytes` that is page cache not used lately. `docker stats` and
    /// Container Insights subtract it.
    pub inactive_file_bytes: u64,
    /// Highest `memory_bytes` so far; `None` on cgroup v2 before Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

/// An error of a control group operation.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither version 1 nor 2 is mounted with what tasks need.
    #[error("no cgroup hierarchy with the controllers cpu, memory and pids is mounted; missing: {missing}")]
    Unsupported { missing: String },
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Processes of the task are still there at the deadline.
    #[error("{count} processes in {path} did not end in time")]
    StillRunning { path: PathBuf, count: usize },
}

impl CgroupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Version of the hierarchy that carries the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// Also "hybrid": an empty version 2 hierarchy beside it.
    V1,
    V2,
}

#[derive(Debug, Clone)]
enum Hierarchy {
    V1(v1::Hierarchies),
    V2(v2::Unified),
}

/// The control groups of one Coracle instance.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// `coracle-<instance>`.
    name: String,
    hierarchy: Hierarchy,
}

impl Cgroups {
    /// Finds out what this host has mounted. Makes nothing.
    pub fn detect(instance: &Instance) -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = std::fs::read_to_string(path).map_err(CgroupError::io("read", path))?;
        Self::from_mountinfo(instance, &mountinfo)
    }

    fn from_mountinfo(instance: &Instance, mountinfo: &str) -> Result<Self, CgroupError> {
        let mounts = mounts::parse(mountinfo);
        let hierarchy = match v1::Hierarchies::find(&mounts) {
            Some(hierarchies) => Hierarchy::V1(hierarchies),
            None => Hierarchy::V2(v2::Unified::find(&mounts)?),
        };
        Ok(Self { name: format!("coracle-{instance}"), hierarchy })
    }

    /// Which version carries the controllers.
    #[must_use]
    pub fn version(&self) -> Version {
        match self.hierarchy {
            Hierarchy::V1(_) => Version::V1,
            Hierarchy::V2(_) => Version::V2,
        }
    }

    /// Makes a task's group with its limits. Repeatable; limits are set anew.
    pub fn create_task(&self, id: &TaskId, limits: &Limits) -> Result<TaskCgroup, CgroupError> {
        let task = self.open_task(id);
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.create(&task.path, limits)?,
            Hierarchy::V2(v2) => v2.create(&task.path, limits)?,
        }
        Ok(task)
    }

    /// The group of a task that was created before, perhaps by an earlier process; it is not
    /// looked for.
    #[must_use]
    pub fn open_task(&self, id: &TaskId) -> TaskCgroup {
        TaskCgroup {
            path: Path::new("/").join(&self.name).join(id.as_str()),
            hierarchy: self.hierarchy.clone(),
        }
    }

    /// Tasks that have a group, alive or not.
    pub fn list(&self) -> Result<Vec<TaskId>, CgroupError> {
        let mut tasks: Vec<TaskId> = Vec::new();
        for root in self.roots() {
            for name in tree::children(&root.join(&self.name))? {
                if let Ok(id) = TaskId::parse(name) {
                    tasks.push(id);
                }
            }
        }
        tasks.sort();
        tasks.dedup();
        Ok(tasks)
    }

    /// Kills and removes all tasks' groups and the instance's own.
    pub fn teardown(&self, timeout: Duration) -> Result<(), CgroupError> {
        for id in self.list()? {
            let task = self.open_task(&id);
            task.kill_all(timeout)?;
            task.remove(timeout)?;
        }
        for root in self.roots() {
            tree::remove(&root.join(&self.name), Instant::now() + timeout)?;
        }
        Ok(())
    }

    fn roots(&self) -> Vec<&Path> {
        roots(&self.hierarchy)
    }
}

fn roots(hierarchy: &Hierarchy) -> Vec<&Path> {
    match hierarchy {
        Hierarchy::V1(v1) => v1.roots(),
        Hierarchy::V2(v2) => vec![v2.root()],
    }
}

/// One task's group.
#[derive(Debug, Clone)]
pub struct TaskCgroup {
    /// Absolute, in cgroup terms: `/coracle-<instance>/<task>`.
    path: PathBuf,
    hierarchy: Hierarchy,
}

impl TaskCgroup {
    /// `/coracle-<instance>/<task>`; with `/<container>` after it, libcontainer's `cgroupsPath`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process (with its threads) into the task's `supervisor` leaf; what it starts from
    /// then on belongs to the task. `ESRCH` when it has ended.
    pub fn add_pid(&self, pid: i32) -> Result<(), CgroupError> {
        let leaf = self.path.join(SUPERVISOR);
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.add_pid(&leaf, pid),
            Hierarchy::V2(v2) => v2.add_pid(&leaf, pid),
        }
    }

    /// What the task has used. Values whose file is missing are zero.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.usage(&self.path),
            Hierarchy::V2(v2) => v2.usage(&self.path),
        }
    }

    /// How many processes the kernel killed for want of memory, in the whole task. On version 1
    /// a removed container's count is lost: ask before libcontainer deletes it.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.oom_kills(&self.path),
            Hierarchy::V2(v2) => v2.oom_kills(&self.path),
        }
    }

    /// The same, of one container.
    pub fn container_oom_kills(&self, container: &str) -> Result<u64, CgroupError> {
        // A name with a slash would be another group.
        let path = self.path.join(Path::new(container).file_name().unwrap_or_default());
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.oom_kills(&path),
            Hierarchy::V2(v2) => v2.oom_kills(&path),
        }
    }

    /// Processes of the task, the supervisor's included.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for root in self.process_roots() {
            tree::processes(&in_root(root, &self.path), &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process of the task with SIGKILL, those that fork meanwhile too, and waits
    /// until none is left. A group that does not exist has none.
    pub fn kill_all(&self, timeout: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_micros(200);
        loop {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            self.kill_once()?;
            if Instant::now() >= deadline {
                return Err(CgroupError::StillRunning { path: self.path.clone(), count: pids.len() });
            }
            // The kernel says nothing when a version 1 group empties.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn kill_once(&self) -> Result<(), CgroupError> {
        if let Hierarchy::V2(v2) = &self.hierarchy
            && v2.kill(&self.path)?
        {
            return Ok(());
        }
        // Frozen processes cannot fork, nor end and leave their number to another.
        let freeze = |frozen| match &self.hierarchy {
            Hierarchy::V1(v1) => v1.set_frozen(&self.path, frozen),
            Hierarchy::V2(v2) => v2.set_frozen(&self.path, frozen),
        };
        freeze(true)?;
        let killed = self.processes().map(|pids| {
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                // The only expected failure is that it has ended.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        });
        freeze(false)?;
        killed
    }

    /// Removes the group and those below it, retrying while the kernel still lets go of
    /// processes. A group that does not exist is fine. Call [`kill_all`](Self::kill_all) before.
    pub fn remove(&self, timeout: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + timeout;
        for root in roots(&self.hierarchy) {
            tree::remove(&in_root(root, &self.path), deadline)?;
        }
        Ok(())
    }

    fn process_roots(&self) -> Vec<&Path> {
        match &self.hierarchy {
            Hierarchy::V1(v1) => v1.process_roots(),
            Hierarchy::V2(v2) => vec![v2.root()],
        }
    }
}

/// The directory of the group `path` in the hierarchy mounted at `root`.
fn in_root(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
