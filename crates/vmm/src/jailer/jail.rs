//! Building the jail and starting the monitor in it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::microvm::{CONTROL_FD, ENDED_FD, KVM_FD};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{ForkResult, Gid, Uid, fexecve, pivot_root, setgroups, setresgid, setresuid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Options, record};

/// Descriptors a monitor may have: its own few, and two disks of at most 250 parts each.
const MAX_FILES: u64 = 1024;
/// Threads: 16 processors, the device threads, and some to spare.
const MAX_THREADS: u64 = 64;

/// What the monitor inherits.
struct Inheritance {
    control: OwnedFd,
    ended: File,
    kvm: File,
    null: File,
    monitor: File,
}

/// Starts the monitor and returns when its program runs.
///
/// # Errors
/// A part of the jail cannot be made, or the program cannot be run.
pub fn start(options: &Options) -> Result<()> {
    let inheritance = Inheritance::open(options)?;
    let (mut failure, report) = pipe()?;
    // For the child; this process stays in the host's other namespaces, to see which process that is.
    unshare(CloneFlags::CLONE_NEWPID).context("make a PID namespace")?;
    match fork()? {
        ForkResult::Child => {
            // Only an error returns.
            let error = match become_monitor(options, inheritance) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let _ = std::io::Write::write_all(&mut File::from(report), format!("{error:#}").as_bytes());
            std::process::exit(1)
        }
        ForkResult::Parent { child } => {
            drop((report, inheritance));
            let mut text = String::new();
            // Ends when the program runs, as it does not inherit the other end.
            failure.read_to_string(&mut text).context("wait for the monitor")?;
            if !text.is_empty() {
                bail!(text);
            }
            record::write(&options.dir, child.as_raw())
        }
    }
}

impl Inheritance {
    fn open(options: &Options) -> Result<Self> {
        let dir = File::open(&options.dir).with_context(|| format!("open {}", options.dir.display()))?;
        let control = listen(&dir).context("make control.sock")?;
        let ended = options.dir.join("ended.json");
        let ended = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&ended)
            .with_context(|| format!("create {}", ended.display()))?;
        let device = |path: &str| {
            OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {path}"))
        };
        let monitor =
            File::open(&options.monitor).with_context(|| format!("open {}", options.monitor.display()))?;
        Ok(Self { control, ended, kvm: device("/dev/kvm")?, null: device("/dev/null")?, monitor })
    }
}

/// A Unix socket's address has only 108 bytes (unix(7)), so the directory is reached by descriptor.
fn listen(dir: &File) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd()))?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = rustix::net::bind(&socket, &address);
    nix::sys::stat::umask(old);
    bound?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

fn pipe() -> Result<(File, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read.into(), lift(write)?))
}

#[allow(unsafe_code)]
fn fork() -> Result<ForkResult> {
    // SAFETY: this process has one thread, so the child may do whatever the parent could.
    unsafe { nix::unistd::fork() }.context("fork")
}

enum Never {}

fn become_monitor(options: &Options, inheritance: Inheritance) -> Result<Never> {
    let monitor = place_descriptors(inheritance)?;
    let spaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(spaces).context("make namespaces")?;
    enter_empty_root(&options.dir)?;
    rustix::system::sethostname(b"microvm").context("set the host name")?;
    for (resource, limit) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        (Resource::RLIMIT_NPROC, MAX_THREADS),
    ] {
        setrlimit(resource, limit, limit).with_context(|| format!("limit {resource:?}"))?;
    }
    let (uid, gid) = (Uid::from_raw(options.uid), Gid::from_raw(options.uid));
    setgroups(&[]).context("drop groups")?;
    setresgid(gid, gid, gid).context("change the group")?;
    // Takes the capabilities with it (capabilities(7), "Effect of user ID changes on capabilities").
    setresuid(uid, uid, uid).context("change the user")?;
    prctl::set_no_new_privs().context("give up new privileges")?;
    let dir = CString::new(options.dir.as_os_str().as_bytes())?;
    // The directory is there for whoever looks at the process list; the monitor does not see it.
    let arguments = [c"coracle-vmm", c"--dir", dir.as_c_str()];
    let error = match fexecve(monitor.as_fd(), &arguments, &[] as &[&std::ffi::CStr]) {
        Ok(never) => match never {},
        Err(errno) => errno,
    };
    Err(error).with_context(|| format!("run {}", options.monitor.display()))
}

/// Moves a descriptor above those that a monitor inherits, so that none is overwritten before its turn.
fn lift(fd: OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(&fd, 64).context("move a descriptor")
}

/// Puts what is inherited where it is expected, and everything else out of reach.
fn place_descriptors(inheritance: Inheritance) -> Result<OwnedFd> {
    let Inheritance { control, ended, kvm, null, monitor } = inheritance;
    let monitor = lift(monitor.into())?;
    let placed = [
        (lift(null.try_clone()?.into())?, 0),
        (lift(null.try_clone()?.into())?, 1),
        (lift(null.into())?, 2),
        (lift(control)?, CONTROL_FD),
        (lift(ended.into())?, ENDED_FD),
        (lift(kvm.into())?, KVM_FD),
    ];
    for (fd, place) in placed {
        put(&fd, place)?;
    }
    close_others_on_exec().context("give up other descriptors")?;
    Ok(monitor)
}

#[allow(unsafe_code)]
fn put(fd: &OwnedFd, place: i32) -> Result<()> {
    // SAFETY: the places 0 to 5 belong to nobody else any more: what was there has been lifted, is
    // closed, or is a standard stream. The new descriptor stays open for the monitor.
    let mut target = unsafe { OwnedFd::from_raw_fd(place) };
    let result = rustix::io::dup2(fd, &mut target);
    let _ = target.into_raw_fd();
    result.context("place a descriptor")
}

/// Whoever started this program may have leaked descriptors into it.
#[allow(unsafe_code)]
fn close_others_on_exec() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if fd > KVM_FD {
            // SAFETY: it is open, as it is listed, and nobody closes it meanwhile: there is one thread.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

/// Makes an empty, read-only root of this process's own. `dir` is only borrowed as a mount point.
fn enter_empty_root(dir: &Path) -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make / private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("jail"), dir, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))
        .context("mount the root")?;
    std::env::set_current_dir(dir)?;
    // The old root ends up on top of the new one, and is taken off (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the host's root")?;
    std::env::set_current_dir("/")?;
    mount(NONE, "/", NONE, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE)
        .context("make the root read-only")
}
