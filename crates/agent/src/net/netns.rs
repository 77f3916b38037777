//! Network namespaces: named ones that outlive the process, and doing things inside one.
//!
//! Entering a namespace changes the calling thread, so everything inside runs on a thread of its
//! own that ends with the job; tokio's workers never leave the host's namespace.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

/// Where `ip netns` keeps its namespaces, so that `ip netns exec` works on ours.
pub const NETNS_DIR: &str = "/run/netns";

/// statfs(2) magic of nsfs, `NSFS_MAGIC` in linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Runs `job` on a new thread inside the network namespace `netns` and returns its result.
/// Fails when the namespace cannot be entered (needs CAP_SYS_ADMIN).
pub fn run_in<T, F>(netns: BorrowedFd<'_>, job: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)?;
                job()
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}

/// Makes a network namespace without a name: it lives as long as the returned file.
pub fn create_anonymous() -> io::Result<File> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
                File::open("/proc/thread-self/ns/net")
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
}

/// Opens the namespace called `name`, or makes it and binds it to `/run/netns/<name>`.
/// Returns the namespace and whether it was made now.
pub fn open_or_create(name: &str) -> io::Result<(File, bool)> {
    let path = path_of(name);
    if is_bound(&path)? {
        return Ok((File::open(&path)?, false));
    }
    share_netns_dir()?;
    // A plain file is what a crash between creation and mount leaves: it is simply used.
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o444).open(&path)?;
    let netns = create_anonymous()?;
    let source = format!("/proc/self/fd/{}", raw(netns.as_fd()));
    rustix::mount::mount_bind(source, &path)?;
    Ok((netns, true))
}

/// Unbinds and removes a named namespace; nothing happens when it does not exist.
pub fn remove(name: &str) -> io::Result<()> {
    let path = path_of(name);
    // Several bind mounts can be stacked on one file.
    while is_bound(&path)? {
        rustix::mount::unmount(&path, UnmountFlags::DETACH)?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names in `/run/netns` that begin with `prefix`.
pub fn list(prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

fn is_bound(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        Ok(stat) => Ok(stat.f_type == NSFS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes `/run/netns` a shared mount as `ip netns add` does, so that a namespace made here is
/// seen in other mount namespaces, and one removed here is not kept alive by them.
fn share_netns_dir() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(NETNS_DIR, shared) {
        // Not a mount point yet.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(NETNS_DIR, NETNS_DIR)?;
            rustix::mount::mount_change(NETNS_DIR, shared)?;
            Ok(())
        }
        other => Ok(other?),
    }
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}
