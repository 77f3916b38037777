//! Building a sandbox: the namespaces, the private file tree and the socket that a supervisor
//! lives in, before it knows its task.
//!
//! ```text
//! agent ── spawns ──▶ launcher ── fork into a new PID namespace ──▶ supervisor (PID 1 there)
//!                        │  waits for "ready", writes supervisor.json, exits
//! ```
//!
//! The supervisor has its own mount namespace, whose root is a tmpfs of its own:
//!
//! ```text
//! /proc       of the sandbox's PID namespace
//! /sys        the host's sysfs, and control groups of version 2
//! /cgroup     the hierarchies of control groups of version 1
//! /dev        the six devices that containers get
//! /ns         the task's user and network namespaces, to be joined by path
//! /host       the host's file tree; only the supervisor may enter
//! /disk       the task's disk
//! /layer      image layers while a root file system is being put together
//! /rootfs     the containers' root file systems
//! /run        libcontainer's records
//! ```
//!
//! In a microVM the tree is the same (`guest/boot.rs`), without `/host` and namespaces for users.
//!
//! When the supervisor dies, the kernel kills everything in the PID namespace, and with the last
//! process the mount namespace and all these mounts go.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Pid, Uid, chown, pivot_root, setsid};
use rustix::fs::{Mode as FileMode, OFlags, ResolveFlags, open, openat, openat2, renameat};
use serde::Serialize;

use crate::cgroup::{self, UNIFIED_ROOT};
use crate::guest::Guest;
use crate::link::Listener;
use crate::scratch::Scratch;
use crate::sys;
use crate::trace::BoundedLog;

/// How many ids a task's user namespace has: 0 to 65535.
pub const ID_COUNT: u32 = 65536;
/// Where the task's namespaces can be joined by path.
pub const USERNS_PATH: &str = "/ns/user";
pub const NETNS_PATH: &str = "/ns/net";
/// Below it is the host's file tree.
const HOST: &str = "/host";

const READY: &[u8] = b"ready";

/// File systems of the host that a sandbox has no use for.
const KERNEL_FILE_SYSTEMS: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "efivarfs",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "binfmt_misc",
    "autofs",
    "rpc_pipefs",
];

/// What the agent says when it starts a sandbox.
#[derive(Debug)]
pub struct SandboxOptions {
    /// The sandbox's own directory on the host.
    pub dir: PathBuf,
    /// The host's id of the task's root user; the 65536 ids from there on are the task's.
    pub uid_base: u32,
    /// A disk to mount ahead of time.
    pub scratch: Option<PathBuf>,
}

/// `DIR/supervisor.json`: how an agent finds a sandbox again. The pair of pid and start time is
/// unique as long as the machine is up.
#[derive(Debug, Serialize)]
struct SupervisorRecord {
    pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    start_time: u64,
    uid_base: u32,
    socket: PathBuf,
    version: &'static str,
}

/// What a supervisor has around it.
pub struct Sandbox {
    pub place: Place,
    /// The id, here, of the containers' root user.
    pub uid_base: u32,
    /// The sandbox's directory on the host; in a microVM one of its own.
    pub dir: OwnedFd,
    pub listener: Listener,
    pub dev_null: File,
    pub scratch: Option<Scratch>,
    /// Whether the supervisor's out-of-memory score is lowered, and children's must be raised.
    pub is_oom_protected: bool,
}

/// What is between the task and the host.
pub enum Place {
    /// Namespaces.
    Container {
        /// The host's `/proc`, to learn host pids.
        host_proc: OwnedFd,
        /// The task's user namespace.
        userns: OwnedFd,
    },
    /// A kernel of the task's own.
    Microvm(Guest),
}

/// How a new supervisor tells its launcher how it went.
pub struct Readiness(File);

impl Readiness {
    /// The sandbox serves: the launcher writes `supervisor.json` and ends.
    pub fn confirm(mut self) -> Result<()> {
        Ok(self.0.write_all(READY)?)
    }

    /// The launcher prints the error and fails.
    pub fn fail(mut self, error: &anyhow::Error) {
        let _ = write!(self.0, "{error:#}");
    }
}

/// Starts a sandbox. Returns in the launcher with `None` when the sandbox is ready, and in the new
/// supervisor with its sandbox and the means to say so.
///
/// # Errors
/// Says in the launcher what could not be set up; the sandbox is gone then.
pub fn start(options: &SandboxOptions) -> Result<Option<(Sandbox, Readiness)>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a sandbox needs root");
    }
    if options.uid_base < ID_COUNT || options.uid_base.checked_add(ID_COUNT).is_none() {
        bail!("--uid-base {} leaves no room for {ID_COUNT} ids that the host does not use", options.uid_base);
    }
    let path = fs::canonicalize(&options.dir).with_context(|| format!("{}", options.dir.display()))?;
    let dir = open_dir(&path)?;
    let (ready_read, ready_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    unshare(CloneFlags::CLONE_NEWPID).context("unshare the PID namespace")?;
    if let Some(child) = sys::fork()? {
        drop(ready_write);
        return launcher(options, &path, &dir, File::from(ready_read), child).map(|()| None);
    }
    drop(ready_read);
    let readiness = Readiness(File::from(ready_write));
    match build(options, &path, dir) {
        Ok(sandbox) => Ok(Some((sandbox, readiness))),
        Err(error) => {
            readiness.fail(&error);
            sys::exit_now(1)
        }
    }
}

fn launcher(options: &SandboxOptions, path: &Path, dir: &OwnedFd, mut ready: File, child: Pid) -> Result<()> {
    let mut said = String::new();
    ready.read_to_string(&mut said)?;
    if said.as_bytes() != READY {
        bail!("{}", if said.is_empty() { "the sandbox died while it was set up" } else { &said });
    }
    let record = SupervisorRecord {
        pid: child.as_raw(),
        start_time: start_time(child)?,
        uid_base: options.uid_base,
        socket: path.join("supervisor.sock"),
        version: env!("CARGO_PKG_VERSION"),
    };
    write_atomically(dir, "supervisor.json", &serde_json::to_vec(&record)?)
}

/// Writes a file of the sandbox's directory so that readers see the old or the new content. Not
/// flushed to disk: it need not survive the machine, only the supervisor.
pub fn write_atomically(dir: &OwnedFd, name: &str, content: &[u8]) -> Result<()> {
    let temporary = format!("{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(openat(dir, &temporary, flags, FileMode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    renameat(dir, &temporary, dir, name)?;
    Ok(())
}

fn start_time(pid: Pid) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name is in parentheses and may contain anything, even parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_whitespace().nth(19).context("short /proc/pid/stat")?;
    Ok(field.parse()?)
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())
        .with_context(|| format!("open {}", path.display()))
}

/// Everything from the fork to readiness, in the new PID namespace.
fn build(options: &SandboxOptions, path: &Path, dir: OwnedFd) -> Result<Sandbox> {
    setsid().context("setsid")?;
    let log = open_log(path)?;
    raise_limits(false);
    let is_oom_protected = protect_from_oom();

    let scratch = match &options.scratch {
        Some(path) => Some(fs::canonicalize(path).with_context(|| format!("{}", path.display()))?),
        None => None,
    };
    let listener = listen(&dir)?;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let host_proc = open_dir(Path::new("/proc"))?;
    enter_private_root(path)?;
    make_devices(options.uid_base)?;
    let userns = make_namespaces(options.uid_base)?;
    let dev_null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let scratch = scratch.map(|path| Scratch::mount(&path)).transpose()?;

    sys::dup_onto(&dev_null, 0)?;
    sys::dup_onto(&dev_null, 1)?;
    // A panic's message is the only thing that goes to standard error.
    sys::dup_onto(&log, 2)?;
    let _ = tracing::subscriber::set_global_default(BoundedLog::new(log));
    Ok(Sandbox {
        place: Place::Container { host_proc, userns },
        uid_base: options.uid_base,
        dir,
        listener,
        dev_null,
        scratch,
        is_oom_protected,
    })
}

/// The kernel shall rather kill a container than the process that can say why. Not every host lets
/// its root do this (it takes CAP_SYS_RESOURCE).
pub fn protect_from_oom() -> bool {
    fs::write("/proc/self/oom_score_adj", b"-900").is_ok()
}

fn open_log(dir: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.join("supervisor.log"))
        .context("open supervisor.log")
}

/// Only an unprivileged process's limits can be raised in a user namespace, so ours are the
/// highest that a container can be given. The soft limits that matter to ourselves stay.
pub fn raise_limits(is_own_kernel: bool) {
    let infinity = nix::libc::RLIM_INFINITY;
    // Only in a machine of its own may a container outrank other processes.
    let ranks = [Resource::RLIMIT_RTPRIO, Resource::RLIMIT_NICE];
    let ranks = ranks.into_iter().filter(|_| is_own_kernel);
    let resources = [
        Resource::RLIMIT_AS,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_RTTIME,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_STACK,
    ];
    for resource in resources.into_iter().chain(ranks) {
        if let Ok((soft, _)) = getrlimit(resource) {
            let _ = setrlimit(resource, soft, infinity);
        }
    }
    let most_files = fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1_048_576);
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 4096, most_files);
}

fn listen(dir: &OwnedFd) -> Result<Listener> {
    // Through the descriptor, because a socket address holds 108 bytes and DIR may be longer.
    let path = format!("/proc/self/fd/{}/supervisor.sock", dir.as_raw_fd());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let old = nix::sys::stat::umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&path).context("bind supervisor.sock");
    nix::sys::stat::umask(old);
    Listener::unix(listener?)
}

/// Replaces the root of this mount namespace by a tmpfs, with the host's tree in `/host`.
///
/// `mount_point` is any directory of the host: the tmpfs is only there until it is the root.
fn enter_private_root(mount_point: &Path) -> Result<()> {
    const NONE: Option<&str> = None;
    // Slave, not private: a file system that the host unmounts shall not stay busy because of us.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).context("make / a slave")?;
    let options = Some("mode=0755,size=16m");
    mount(Some("sandbox"), mount_point, Some("tmpfs"), MsFlags::MS_NOSUID, options)
        .context("mount the root")?;
    std::env::set_current_dir(mount_point)?;
    make_tree()?;
    pivot_root(".", "host").context("pivot_root")?;
    std::env::set_current_dir("/")?;

    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), quiet, NONE).context("mount /proc")?;
    mount(Some("/host/sys"), "/sys", NONE, MsFlags::MS_BIND, NONE).context("bind /sys")?;
    bind_cgroups()?;
    detach_kernel_file_systems()
}

/// Makes the directories of a sandbox's root in the current one.
pub fn make_tree() -> Result<()> {
    for (name, mode) in [
        ("proc", 0o755),
        ("sys", 0o755),
        ("cgroup", 0o755),
        ("dev", 0o755),
        ("ns", 0o755),
        ("host", 0o700),
        ("disk", 0o755),
        ("layer", 0o755),
        ("rootfs", 0o755),
        ("run", 0o700),
    ] {
        fs::create_dir(name)
            .and_then(|()| fs::set_permissions(name, Permissions::from_mode(mode)))
            .with_context(|| format!("make /{name}"))?;
    }
    Ok(())
}

fn bind_cgroups() -> Result<()> {
    const NONE: Option<&str> = None;
    let host = Path::new("/host/sys/fs/cgroup");
    if host.join("cgroup.controllers").exists() {
        return mount(Some(host), UNIFIED_ROOT, NONE, MsFlags::MS_BIND, NONE)
            .context("bind the control groups");
    }
    for entry in fs::read_dir(host)?.flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let is_hierarchy =
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.path().join("tasks").exists();
        if is_hierarchy {
            let target = cgroup::split_mount(&name);
            fs::create_dir(&target)?;
            mount(Some(&entry.path()), &target, NONE, MsFlags::MS_BIND, NONE)
                .with_context(|| format!("bind the control groups of {name}"))?;
        }
    }
    // An empty tmpfs is what libcontainer takes for version 1 without any hierarchy.
    mount(Some("none"), UNIFIED_ROOT, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=4k"))
        .context("hide the control groups")
}

/// Every mount that stays is copied for each container, and shown to its first process: only the
/// host's ordinary file systems stay in `/host`.
fn detach_kernel_file_systems() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        if point.starts_with("/host/") && KERNEL_FILE_SYSTEMS.contains(&kind) {
            // Fails for what went with a mount above it.
            let _ = umount2(unescape(point).as_str(), MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The devices that every container gets, as nodes of our own, owned by the task's root. A user
/// namespace cannot make nodes, so containers get them as bind mounts.
fn make_devices(uid_base: u32) -> Result<()> {
    let old = nix::sys::stat::umask(Mode::empty());
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        let path = format!("/dev/{name}");
        mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .with_context(|| format!("make {path}"))?;
        let group = if name == "tty" { uid_base + 5 } else { uid_base };
        chown(path.as_str(), Some(Uid::from_raw(uid_base)), Some(Gid::from_raw(group)))?;
    }
    nix::sys::stat::umask(old);
    Ok(())
}

/// Makes the task's user namespace and, owned by it, the task's network namespace, and enters the
/// latter.
fn make_namespaces(uid_base: u32) -> Result<OwnedFd> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (made_read, made_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (done_read, done_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(holder) = sys::fork()? else {
        drop((made_read, done_write));
        let code = match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
            Ok(()) => {
                let _ = rustix::io::write(&made_write, b"1");
                let _ = rustix::io::read(&done_read, &mut [0u8]);
                0
            }
            Err(errno) => errno as i32,
        };
        sys::exit_now(code);
    };
    drop((made_write, done_read));
    let made = rustix::io::read(&made_read, &mut [0u8]).unwrap_or(0) == 1;
    let result = if made { keep_namespaces(holder, uid_base) } else { Ok(()) };
    drop(done_write);
    let status = nix::sys::wait::waitpid(holder, None)?;
    if let nix::sys::wait::WaitStatus::Exited(_, code @ 1..) = status {
        let error = std::io::Error::from_raw_os_error(code);
        return Err(error).context("make a user namespace (is user.max_user_namespaces 0?)");
    }
    result?;

    let netns = File::open(NETNS_PATH)?;
    setns(&netns, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    sys::bring_up_loopback(&socket).context("bring up lo")?;
    // Docker's defaults: any user may listen on port 80 and ping.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0").context("ip_unprivileged_port_start")?;
    let groups = format!("{uid_base} {}", uid_base + ID_COUNT - 1);
    fs::write("/proc/sys/net/ipv4/ping_group_range", groups).context("ping_group_range")?;
    Ok(File::open(USERNS_PATH)?.into())
}

/// Maps the ids of `holder`'s user namespace and binds its namespaces to files.
fn keep_namespaces(holder: Pid, uid_base: u32) -> Result<()> {
    const NONE: Option<&str> = None;
    let map = format!("0 {uid_base} {ID_COUNT}");
    fs::write(format!("/proc/{holder}/uid_map"), &map).context("write uid_map")?;
    fs::write(format!("/proc/{holder}/gid_map"), &map).context("write gid_map")?;
    for (kind, path) in [("user", USERNS_PATH), ("net", NETNS_PATH)] {
        File::create(path)?;
        let source = format!("/proc/{holder}/ns/{kind}");
        mount(Some(source.as_str()), path, NONE, MsFlags::MS_BIND, NONE)
            .with_context(|| format!("keep the {kind} namespace"))?;
    }
    Ok(())
}

/// Opens a path of the host as the host resolves it: absolute symbolic links, too.
///
/// # Errors
/// The error names the path.
pub fn open_on_host(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let root = open(HOST, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    openat2(&root, relative, flags | OFlags::CLOEXEC, FileMode::empty(), ResolveFlags::IN_ROOT)
        .with_context(|| format!("open {}", path.display()))
}

impl Sandbox {
    /// The task's user namespace, if it has one.
    pub fn userns(&self) -> Option<&OwnedFd> {
        match &self.place {
            Place::Container { userns, .. } => Some(userns),
            Place::Microvm(_) => None,
        }
    }

    /// Whether the task has a kernel of its own.
    pub fn is_microvm(&self) -> bool {
        matches!(self.place, Place::Microvm(_))
    }

    /// The host's pid of a child of ours; the host has no such process where it is a microVM's.
    pub fn host_pid(&self, pid: Pid) -> Option<i32> {
        let Place::Container { host_proc, .. } = &self.place else { return None };
        // The kernel prints a pidfd's pid as the reader's procfs instance numbers it, and
        // the supervisor itself is in the host's instance, too.
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(pid.as_raw())?,
            rustix::process::PidfdFlags::empty(),
        )
        .ok()?;
        let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
        let info =
            openat(host_proc.as_fd(), path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty()).ok()?;
        let mut text = String::new();
        File::from(info).read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape("/a\\040b"), "/a b");
        assert_eq!(unescape("/a"), "/a");
    }
}
