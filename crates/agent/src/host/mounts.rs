//! Whether overlayfs and mounts with mapped user ids work. Each attempt is made by a thread with a
//! mount namespace of its own, which takes its mounts along when it ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

/// Why layers cannot be shared between user namespaces.
#[derive(Debug, thiserror::Error)]
pub enum IdmapError {
    #[error("no user namespace can be made: {0}")]
    UserNamespace(io::Error),
    #[error("a mount of {path} cannot map user ids: {source}")]
    Mount { path: String, source: io::Error },
    #[error("overlayfs takes no layer with mapped user ids: {0}")]
    Overlay(io::Error),
    #[error("cannot try: {0}")]
    Setup(io::Error),
}

/// Mounts an overlay over a tmpfs and writes to it.
pub fn overlay() -> io::Result<()> {
    let directory = scratch_directory(&std::env::temp_dir())?;
    in_own_mount_namespace(|| {
        let base = directory.path();
        rustix::mount::mount("coracle-doctor", base, "tmpfs", MountFlags::empty(), None)?;
        let lower = base.join("lower");
        fs::create_dir(&lower)?;
        fs::write(lower.join("file"), "below")?;
        mount_overlay(base, &lower)?;
        let merged = base.join("merged/file");
        fs::write(&merged, "above")?;
        if fs::read_to_string(lower.join("file"))? != "below" || fs::read_to_string(merged)? != "above" {
            return Err(io::Error::other("a write went through to the layer below"));
        }
        Ok(())
    })
}

/// Makes a user namespace, a mount of a directory in `state_dir` with user ids mapped by it, and
/// an overlay with that as its lower layer.
pub fn idmapped_overlay(state_dir: &Path) -> Result<(), IdmapError> {
    let layer = scratch_directory(state_dir).map_err(IdmapError::Setup)?;
    let upper = scratch_directory(&std::env::temp_dir()).map_err(IdmapError::Setup)?;
    let holder = NamespaceHolder::start().map_err(IdmapError::UserNamespace)?;
    let userns = File::open(format!("/proc/{}/ns/user", holder.0.id())).map_err(IdmapError::UserNamespace)?;
    let attempt = || -> io::Result<Result<(), IdmapError>> {
        let base = upper.path();
        rustix::mount::mount("coracle-doctor", base, "tmpfs", MountFlags::empty(), None)?;
        let mapped = base.join("mapped");
        fs::create_dir(&mapped)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, layer.path(), flags)?;
        if let Err(source) = mount_setattr::map_ids(tree.as_fd(), userns.as_fd()) {
            return Ok(Err(IdmapError::Mount { path: layer.path().display().to_string(), source }));
        }
        rustix::mount::move_mount(
            tree.as_fd(),
            "",
            rustix::fs::CWD,
            &mapped,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(mount_overlay(base, &mapped).map_err(IdmapError::Overlay))
    };
    in_own_mount_namespace(attempt).map_err(IdmapError::Setup)?
}

fn mount_overlay(base: &Path, lower: &Path) -> io::Result<()> {
    for name in ["upper", "work", "merged"] {
        fs::create_dir(base.join(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        base.join("upper").display(),
        base.join("work").display()
    );
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", base.join("merged"), "overlay", MountFlags::empty(), options.as_c_str())?;
    Ok(())
}

fn in_own_mount_namespace<T: Send>(job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let run = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            job()
        };
        std::thread::Builder::new()
            .name("mount-probe".into())
            .spawn_scoped(scope, run)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the probing thread panicked")))
    })
}

/// A directory that is removed when dropped.
struct Directory(std::path::PathBuf);

impl Directory {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn scratch_directory(parent: &Path) -> io::Result<Directory> {
    let path = parent.join(format!(".coracle-doctor-{:016x}", rand::random::<u64>()));
    fs::create_dir(&path)?;
    Ok(Directory(path))
}

/// A child process in a user namespace of its own, ended when dropped. (A process with threads,
/// such as this one, cannot enter a new user namespace itself.)
struct NamespaceHolder(Child);

impl NamespaceHolder {
    fn start() -> io::Result<Self> {
        // `cat` waits until its standard input is closed.
        let child = Command::new("unshare")
            .args(["--user", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut holder = Self(child);
        let ours = fs::read_link("/proc/self/ns/user")?;
        let theirs = format!("/proc/{}/ns/user", holder.0.id());
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::read_link(&theirs)? == ours {
            if let Some(status) = holder.0.try_wait()? {
                return Err(io::Error::other(format!("unshare --user ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", holder.0.id()), "0 100000 65536\n")?;
        }
        Ok(holder)
    }
}

impl Drop for NamespaceHolder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// mount_setattr(2), which has no safe wrapper yet.
#[allow(unsafe_code)]
mod mount_setattr {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    use nix::libc;

    /// Maps user and group ids of a detached mount as the user namespace does.
    pub fn map_ids(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: u64::from(userns.as_raw_fd().unsigned_abs()),
        };
        // SAFETY: the path is a constant C string, `attributes` is a `struct mount_attr` of the
        // size that is given, and the call keeps neither.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
