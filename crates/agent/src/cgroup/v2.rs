//! cgroup version 2: one hierarchy; controllers are switched on level by level.
//!
//! Source: kernel documentation, admin-guide/cgroup-v2.rst.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::mounts::Mount;
use super::tree;
use super::{CPU_PERIOD_US, CgroupError, Limits, Usage, in_root};

const REQUIRED: [&str; 3] = ["cpu", "memory", "pids"];
/// Used by containers' own limits where the host has them.
const OPTIONAL: [&str; 2] = ["cpuset", "io"];
/// Where processes go that would keep the root from having controllers for its children.
const EVACUATED: &str = "coracle-host";

/// The unified hierarchy.
#[derive(Debug, Clone)]
pub struct Unified {
    root: PathBuf,
    controllers: Vec<&'static str>,
}

impl Unified {
    /// The mounted hierarchy; fails when it lacks a required controller.
    pub fn find(mounts: &[Mount]) -> Result<Self, CgroupError> {
        let unsupported = |missing: String| CgroupError::Unsupported { missing };
        let root = mounts
            .iter()
            .find(|mount| mount.unified)
            .map(|mount| mount.path.clone())
            .ok_or_else(|| unsupported(REQUIRED.join(", ")))?;
        let available = tree::read(&root.join("cgroup.controllers"))?.unwrap_or_default();
        let has = |name: &&str| available.split_whitespace().any(|c| c == *name);
        let missing: Vec<_> = REQUIRED.into_iter().filter(|name| !has(name)).collect();
        if !missing.is_empty() {
            return Err(unsupported(missing.join(", ")));
        }
        let controllers = REQUIRED.into_iter().chain(OPTIONAL.into_iter().filter(has)).collect();
        Ok(Self { root, controllers })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn create(&self, path: &Path, limits: &Limits) -> Result<(), CgroupError> {
        self.enable_in_root()?;
        let mut directory = self.root.clone();
        for part in path.strip_prefix("/").unwrap_or(path) {
            directory.push(part);
            tree::create(&directory)?;
            self.enable(&directory)?;
        }
        tree::write(&directory.join("cpu.max"), format!("{} {CPU_PERIOD_US}", limits.cpu_quota_us()))?;
        tree::write(&directory.join("cpu.weight"), weight(limits.cpu_shares()))?;
        tree::write(&directory.join("memory.max"), limits.memory_bytes)?;
        // Absent where the kernel has no swap accounting.
        let swap = directory.join("memory.swap.max");
        if swap.exists() {
            tree::write(&swap, 0)?;
        }
        // Out of memory, the kernel picks one process, as in Docker and on Fargate; whether the
        // task ends with it is for its containers' `essential` to say.
        let group = directory.join("memory.oom.group");
        if group.exists() {
            tree::write(&group, 0)?;
        }
        tree::write(&directory.join("pids.max"), limits.pids_max)
    }

    /// Lets the root's children have controllers. The host's real root may hold processes; the
    /// root of a cgroup namespace (Coracle inside a container) may not, so there they move aside.
    fn enable_in_root(&self) -> Result<(), CgroupError> {
        let busy = |error: &CgroupError| {
            matches!(error, CgroupError::Io { source, .. }
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()))
        };
        match self.enable(&self.root) {
            Err(error) if busy(&error) => {}
            other => return other,
        }
        let aside = self.root.join(EVACUATED);
        tree::create(&aside)?;
        let processes = tree::read(&self.root.join("cgroup.procs"))?.unwrap_or_default();
        for pid in processes.lines() {
            // It may have ended; what cannot be moved makes the next attempt fail with its reason.
            let _ = tree::write(&aside.join("cgroup.procs"), pid);
        }
        self.enable(&self.root)
    }

    fn enable(&self, directory: &Path) -> Result<(), CgroupError> {
        let file = directory.join("cgroup.subtree_control");
        let enabled = tree::read(&file)?.unwrap_or_default();
        let missing: Vec<_> = self
            .controllers
            .iter()
            .filter(|name| !enabled.split_whitespace().any(|c| c == **name))
            .map(|name| format!("+{name}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        tree::write(&file, missing.join(" "))
    }

    pub fn add_pid(&self, leaf: &Path, pid: i32) -> Result<(), CgroupError> {
        let directory = in_root(&self.root, leaf);
        tree::create(&directory)?;
        tree::write(&directory.join("cgroup.procs"), pid)
    }

    pub fn usage(&self, path: &Path) -> Result<Usage, CgroupError> {
        let directory = in_root(&self.root, path);
        let number = |file: &str| tree::read_number(&directory.join(file));
        let keyed = |file: &str, key: &str| {
            tree::read_keyed(&directory.join(file), key).map(Option::unwrap_or_default)
        };
        Ok(Usage {
            cpu_ns: keyed("cpu.stat", "usage_usec")? * 1000,
            throttled_periods: keyed("cpu.stat", "nr_throttled")?,
            memory_bytes: number("memory.current")?.unwrap_or_default(),
            inactive_file_bytes: keyed("memory.stat", "inactive_file")?,
            memory_peak_bytes: number("memory.peak")?,
            pids: number("pids.current")?.unwrap_or_default(),
        })
    }

    /// `memory.events` counts the groups below, too.
    pub fn oom_kills(&self, path: &Path) -> Result<u64, CgroupError> {
        let file = in_root(&self.root, path).join("memory.events");
        Ok(tree::read_keyed(&file, "oom_kill")?.unwrap_or_default())
    }

    /// Kills all at once; false before Linux 5.14, which cannot.
    pub fn kill(&self, path: &Path) -> Result<bool, CgroupError> {
        let file = in_root(&self.root, path).join("cgroup.kill");
        if !file.exists() {
            return Ok(false);
        }
        tree::write(&file, 1)?;
        Ok(true)
    }

    pub fn set_frozen(&self, path: &Path, frozen: bool) -> Result<(), CgroupError> {
        let file = in_root(&self.root, path).join("cgroup.freeze");
        if !file.exists() {
            return Ok(());
        }
        tree::write(&file, u8::from(frozen))
    }
}

/// Version 2's weight (1 to 10000) for version 1's shares (2 to 262144), linear as in the OCI
/// runtimes' conversion.
fn weight(shares: u64) -> u64 {
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn unified(root: &Path, controllers: &str) -> Result<Unified, CgroupError> {
        fs::write(root.join("cgroup.controllers"), controllers).unwrap();
        Unified::find(&[Mount { path: root.to_owned(), unified: true, options: Vec::new() }])
    }

    #[test]
    fn writes_limits_at_the_task_and_controllers_on_the_way() {
        let root = tempfile::tempdir().unwrap();
        let unified = unified(root.path(), "cpuset cpu io memory hugetlb pids\n").unwrap();
        let task = root.path().join("coracle-x/t");
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("memory.swap.max"), "max").unwrap();
        let limits = Limits { cpu_units: 256, memory_bytes: 512 << 20, pids_max: 4096 };
        unified.create(Path::new("/coracle-x/t"), &limits).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        for directory in ["", "coracle-x", "coracle-x/t"] {
            let enabled = read(root.path().join(directory).join("cgroup.subtree_control"));
            assert_eq!(enabled, "+cpu +memory +pids +cpuset +io", "{directory}");
        }
        assert_eq!(read(task.join("cpu.max")), "25000 100000");
        assert_eq!(read(task.join("memory.max")), (512 << 20).to_string());
        assert_eq!(read(task.join("memory.swap.max")), "0");
        assert_eq!(read(task.join("pids.max")), "4096");
        assert!(!task.join("memory.oom.group").exists());
        assert!(!task.join("cgroup.procs").exists(), "a group with controllers has no process");
        unified.add_pid(Path::new("/coracle-x/t/supervisor"), 7).unwrap();
        assert_eq!(read(task.join("supervisor/cgroup.procs")), "7");
    }

    #[test]
    fn reads_usage() {
        let root = tempfile::tempdir().unwrap();
        let unified = unified(root.path(), "cpu memory pids").unwrap();
        fs::write(root.path().join("cpu.stat"), "usage_usec 1500\nnr_periods 9\nnr_throttled 4\n").unwrap();
        fs::write(root.path().join("memory.current"), "4096\n").unwrap();
        fs::write(root.path().join("memory.stat"), "anon 1\ninactive_file 1024\n").unwrap();
        fs::write(root.path().join("pids.current"), "3\n").unwrap();
        fs::write(root.path().join("memory.events"), "low 0\noom 2\noom_kill 1\noom_group_kill 0\n").unwrap();
        let usage = unified.usage(Path::new("/")).unwrap();
        assert_eq!(
            usage,
            Usage {
                cpu_ns: 1_500_000,
                throttled_periods: 4,
                memory_bytes: 4096,
                inactive_file_bytes: 1024,
                memory_peak_bytes: None,
                pids: 3,
            }
        );
        assert_eq!(unified.oom_kills(Path::new("/")).unwrap(), 1);
        assert_eq!(unified.oom_kills(Path::new("/gone")).unwrap(), 0);
    }

    #[test]
    fn a_missing_controller_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = unified(root.path(), "cpu io").unwrap_err();
        assert!(matches!(error, CgroupError::Unsupported { missing } if missing == "memory, pids"));
    }

    #[test]
    fn weights_span_the_scale() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }
}
