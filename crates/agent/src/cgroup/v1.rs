//! cgroup version 1: one hierarchy per controller (or pair of controllers), and "hybrid".

use std::path::{Path, PathBuf};

use super::mounts::Mount;
use super::tree;
use super::{CPU_PERIOD_US, CgroupError, Limits, Usage, in_root};

/// The mounted hierarchies.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    cpu: PathBuf,
    cpuacct: Option<PathBuf>,
    memory: PathBuf,
    pids: PathBuf,
    freezer: Option<PathBuf>,
    /// All, including those where only libcontainer makes groups, each once.
    all: Vec<PathBuf>,
    /// Those that a supervisor is moved into. Not `cpuset`: a group there takes no process before
    /// its CPUs are set. The named ones and the unified one are what systemd tracks services by:
    /// a supervisor left in the agent's group there would be killed with it.
    joined: Vec<PathBuf>,
}

impl Hierarchies {
    /// `None` unless cpu, memory and pids are mounted as version 1.
    pub fn find(mounts: &[Mount]) -> Option<Self> {
        let find = |controller: &str| {
            let has = |mount: &&Mount| !mount.unified && mount.options.iter().any(|o| o == controller);
            mounts.iter().find(has).map(|mount| mount.path.clone())
        };
        let mut all: Vec<PathBuf> = Vec::new();
        for mount in mounts {
            if !all.contains(&mount.path) {
                all.push(mount.path.clone());
            }
        }
        let cpuset = find("cpuset");
        let joined = all.iter().filter(|path| Some(*path) != cpuset.as_ref()).cloned().collect();
        Some(Self {
            cpu: find("cpu")?,
            cpuacct: find("cpuacct"),
            memory: find("memory")?,
            pids: find("pids")?,
            freezer: find("freezer"),
            all,
            joined,
        })
    }

    pub fn roots(&self) -> Vec<&Path> {
        self.all.iter().map(PathBuf::as_path).collect()
    }

    /// Every process of a task is in these; two, in case one was made half.
    pub fn process_roots(&self) -> Vec<&Path> {
        self.freezer.iter().chain([&self.pids]).map(PathBuf::as_path).collect()
    }

    pub fn create(&self, path: &Path, limits: &Limits) -> Result<(), CgroupError> {
        for root in &self.joined {
            create_below(root, path)?;
        }
        let cpu = in_root(&self.cpu, path);
        tree::write(&cpu.join("cpu.cfs_period_us"), CPU_PERIOD_US)?;
        tree::write(&cpu.join("cpu.cfs_quota_us"), limits.cpu_quota_us())?;
        tree::write(&cpu.join("cpu.shares"), limits.cpu_shares())?;

        let memory = in_root(&self.memory, path);
        let memsw = memory.join("memory.memsw.limit_in_bytes");
        // Memory plus swap may never be below memory: which to write first depends on the old
        // values.
        if tree::write(&memory.join("memory.limit_in_bytes"), limits.memory_bytes).is_err() && memsw.exists()
        {
            tree::write(&memsw, limits.memory_bytes)?;
        }
        tree::write(&memory.join("memory.limit_in_bytes"), limits.memory_bytes)?;
        if memsw.exists() {
            tree::write(&memsw, limits.memory_bytes)?;
        } else if memory.join("memory.swappiness").exists() {
            // Without swap accounting this is the nearest to "no swap".
            tree::write(&memory.join("memory.swappiness"), 0)?;
        }
        tree::write(&in_root(&self.pids, path).join("pids.max"), limits.pids_max)
    }

    pub fn add_pid(&self, leaf: &Path, pid: i32) -> Result<(), CgroupError> {
        for root in &self.joined {
            create_below(root, leaf)?;
            tree::write(&in_root(root, leaf).join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    pub fn usage(&self, path: &Path) -> Result<Usage, CgroupError> {
        let memory = in_root(&self.memory, path);
        let cpu_ns = match &self.cpuacct {
            Some(root) => tree::read_number(&in_root(root, path).join("cpuacct.usage"))?,
            None => None,
        };
        let number = |file: &str| tree::read_number(&memory.join(file));
        Ok(Usage {
            cpu_ns: cpu_ns.unwrap_or_default(),
            throttled_periods: tree::read_keyed(&in_root(&self.cpu, path).join("cpu.stat"), "nr_throttled")?
                .unwrap_or_default(),
            memory_bytes: number("memory.usage_in_bytes")?.unwrap_or_default(),
            inactive_file_bytes: tree::read_keyed(&memory.join("memory.stat"), "total_inactive_file")?
                .unwrap_or_default(),
            memory_peak_bytes: number("memory.max_usage_in_bytes")?,
            pids: tree::read_number(&in_root(&self.pids, path).join("pids.current"))?.unwrap_or_default(),
        })
    }

    /// The kernel counts a kill in the victim's group only.
    pub fn oom_kills(&self, path: &Path) -> Result<u64, CgroupError> {
        fn count(directory: &Path) -> Result<u64, CgroupError> {
            let mut kills =
                tree::read_keyed(&directory.join("memory.oom_control"), "oom_kill")?.unwrap_or_default();
            for child in tree::children(directory)? {
                kills += count(&directory.join(child))?;
            }
            Ok(kills)
        }
        count(&in_root(&self.memory, path))
    }

    pub fn set_frozen(&self, path: &Path, frozen: bool) -> Result<(), CgroupError> {
        let Some(root) = &self.freezer else {
            return Ok(());
        };
        let file = in_root(root, path).join("freezer.state");
        if !file.exists() {
            return Ok(());
        }
        tree::write(&file, if frozen { "FROZEN" } else { "THAWED" })
    }
}

/// Makes `path` and what leads to it in one hierarchy.
fn create_below(root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut directory = root.to_owned();
    for part in path.strip_prefix("/").unwrap_or(path) {
        directory.push(part);
        tree::create(&directory)?;
    }
    Ok(())
}
