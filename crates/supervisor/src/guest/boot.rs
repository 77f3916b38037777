//! From the kernel's start of `/init` to a sandbox without a task.
//!
//! The initial file system cannot be left by `pivot_root`, which containers need: so it is emptied,
//! which frees its memory, and a tmpfs is moved on top of it (as switch_root(8) does). In it is the
//! same tree as in a container sandbox (see `sandbox.rs`), except for what is the host's.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use model::microvm::SUPERVISOR_PORT;
use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags};

use super::{Guest, cgroups, network};
use crate::cgroup::UNIFIED_ROOT;
use crate::link::Listener;
use crate::sandbox::{self, NETNS_PATH, Place, Sandbox};
use crate::sys;
use crate::trace::BoundedLog;

const NONE: Option<&str> = None;
/// Modules of the kernel, in the directory of the initial file system that also lists them: one
/// file name per line, in the order in which they are loaded.
const MODULES: &str = "/modules";
const MODULE_ORDER: &str = "order";
/// Where the new root is made.
const NEW_ROOT: &str = "/newroot";

/// Makes everything that can be made without a task.
///
/// # Errors
/// The kernel lacks something that no task can do without.
pub fn boot() -> Result<Sandbox> {
    make_directory("/dev", 0o755)?;
    // The kernel may have done it.
    match mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID, Some("mode=0755")) {
        Err(nix::errno::Errno::EBUSY) | Ok(()) => {}
        Err(errno) => return Err(errno).context("mount /dev"),
    }
    let dev_null = open_standard_descriptors()?;
    load_modules(Path::new(MODULES))?;
    enter_new_root()?;
    mount_kernel_file_systems()?;
    sandbox::raise_limits(true);
    keep_network_namespace()?;
    network::prepare()?;
    cgroups::delegate(Path::new(UNIFIED_ROOT)).context("delegate the control groups' controllers")?;
    Ok(Sandbox {
        place: Place::Microvm(Guest::default()),
        uid_base: 0,
        dir: open_directory("/run")?,
        listener: Listener::vsock(SUPERVISOR_PORT)?,
        dev_null,
        scratch: None,
        is_oom_protected: false,
    })
}

fn make_directory(path: &str, mode: u32) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => fs::set_permissions(path, Permissions::from_mode(mode)),
    }
    .with_context(|| format!("make {path}"))
}

fn open_directory(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {path}"))
}

/// The kernel opens the three only where the initial file system has a console; and what goes to a
/// console is slow. Output goes to the kernel's log.
fn open_standard_descriptors() -> Result<File> {
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
    // While one of the three is closed, a file that is opened takes its place, and not for long.
    let (first, second, third) = (open("/dev/null"), open("/dev/null"), open("/dev/null"));
    for (descriptor, file) in [first, second, third].into_iter().enumerate() {
        let file = file.context("open /dev/null")?;
        sys::stay_open_as(file, i32::try_from(descriptor)?)?;
    }
    let dev_null = open("/dev/null")?;
    let log = OpenOptions::new().write(true).open("/dev/kmsg").context("open /dev/kmsg")?;
    sys::dup_onto(&log, 2)?;
    let _ = tracing::subscriber::set_global_default(BoundedLog::to_kernel(log));
    Ok(dev_null)
}

/// Loads the modules that the initial file system brings. A kernel may have any of them built in,
/// or be another than they were made for: what is missing then is missed by whoever needs it.
fn load_modules(dir: &Path) -> Result<()> {
    let order = match fs::read_to_string(dir.join(MODULE_ORDER)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        order => order.context("read the list of modules")?,
    };
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        if let Err(error) = load_module(&dir.join(name)) {
            tracing::error!(name, error = format!("{error:#}"), "module not loaded");
        }
    }
    Ok(())
}

fn load_module(path: &Path) -> Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    match rustix::system::finit_module(&file, c"", 0) {
        // Loaded already, or built in.
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

fn enter_new_root() -> Result<()> {
    make_directory(NEW_ROOT, 0o755)?;
    mount(Some("guest"), NEW_ROOT, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755,size=16m"))
        .context("mount the root")?;
    std::env::set_current_dir(NEW_ROOT)?;
    sandbox::make_tree()?;
    mount(Some("/dev"), "dev", NONE, MsFlags::MS_MOVE, NONE).context("move /dev")?;
    remove_all(Path::new("/"))?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE).context("move the root")?;
    nix::unistd::chroot(".").context("chroot")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Empties the file system that a directory is on, below the directory. Memory of a file that is
/// still used, like this program's, stays.
fn remove_all(dir: &Path) -> Result<()> {
    let device = fs::symlink_metadata(dir)?.dev();
    for entry in fs::read_dir(dir)?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        let result = match metadata.is_dir() {
            true if metadata.dev() != device => Ok(()),
            true => {
                remove_all(&path)?;
                // Where something else was mounted it is busy.
                let _ = fs::remove_dir(&path);
                Ok(())
            }
            false => fs::remove_file(&path),
        };
        result.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn mount_kernel_file_systems() -> Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (kind, path, options) in [
        ("proc", "/proc", NONE),
        ("sysfs", "/sys", NONE),
        // A group that was delegated to a container cannot change its own limits.
        ("cgroup2", UNIFIED_ROOT, Some("nsdelegate,memory_recursiveprot")),
    ] {
        mount(Some(kind), path, Some(kind), quiet, options).with_context(|| format!("mount {path}"))?;
    }
    // Our lines are few, and all are wanted.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    Ok(())
}

/// Containers join the machine's own network by the path of a namespace, as in any sandbox.
fn keep_network_namespace() -> Result<()> {
    File::create(NETNS_PATH)?;
    mount(Some("/proc/self/ns/net"), NETNS_PATH, NONE, MsFlags::MS_BIND, NONE)
        .context("keep the network namespace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_emptied_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("a/other");
        fs::create_dir_all(&other).unwrap();
        mount(Some("test"), &other, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        fs::write(dir.path().join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("a/link")).unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        let result = remove_all(dir.path());
        let kept = other.join("kept").exists();
        nix::mount::umount(&other).unwrap();
        result.unwrap();
        assert!(kept && Path::new("/etc/passwd").exists());
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["a"]);
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_there_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        load_modules(dir.path()).unwrap();
        fs::write(dir.path().join(MODULE_ORDER), "built_in.ko\n\n").unwrap();
        load_modules(dir.path()).unwrap();
        fs::write(dir.path().join("no_module.ko"), "text").unwrap();
        assert!(load_module(&dir.path().join("no_module.ko")).is_err());
    }
}
