//! What this host can do for tasks, found out by trying, for `coracle doctor` and for the choice
//! of isolation.
//!
//! Every attempt happens in throw-away namespaces and temporary directories; nothing is changed.

pub mod kvm;
mod mounts;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroups, Version};
use crate::error_chain::chain;
use crate::guest::{self, KernelStore};
use crate::instance::Instance;
use crate::net::{firewall, netns};
use crate::{loop_device, scratch};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Tasks run, but something is missing or unusual.
    Warn,
    /// Tasks cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Such as `cgroups`; never changes between versions, so that programs can rely on it.
    pub name: String,
    pub status: Status,
    /// What there is.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, found: found.into(), advice: None }
    }

    fn warn(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { name: name.into(), status: Status::Warn, found: found.into(), advice }
    }

    fn fail(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { name: name.into(), status: Status::Fail, found: found.into(), advice }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    pub kernel: String,
    pub cpus: u64,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub memory_available: u64,
    /// Bytes for files under the state directory.
    pub disk_free: u64,
    pub cgroup: Option<Version>,
    /// Guest code runs, floating point included. It does not say that a whole Linux guest does.
    pub kvm_runs_guest_code: bool,
    /// Mounts of the state directory's file system can map user ids, also below overlayfs: what a
    /// user namespace per container needs to share unpacked layers.
    pub idmapped_layers: bool,
    pub checks: Vec<Check>,
}

impl HostFacts {
    /// The worst of all checks.
    #[must_use]
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }
}

/// Looks at everything. `state_dir` (or its nearest existing parent) is where tasks' disks would
/// be. Blocks for some 100 ms.
#[must_use]
pub fn probe(state_dir: &Path) -> HostFacts {
    let existing = state_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let cgroups = Instance::of(existing).ok().and_then(|instance| Cgroups::detect(&instance).ok());
    let kvm = kvm::probe();
    let layers = mounts::idmapped_overlay(existing);
    let is_root = rustix::process::geteuid().is_root();
    let as_root = |name: &str, check: fn() -> Check| if is_root { check() } else { needs_root(name) };
    let (memory_total, memory_available) = memory();
    let disk_free =
        rustix::fs::statvfs(existing).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)).unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let checks = vec![
        privileges(),
        kernel_version(&kernel),
        check_cgroups(cgroups.as_ref()),
        as_root(NFTABLES, nftables),
        forwarding(),
        as_root(OVERLAYFS, overlay),
        user_namespaces(&layers),
        if is_root { idmapped(&layers) } else { needs_root(IDMAPPED_MOUNTS) },
        seccomp(),
        as_root(LOOP_DEVICES, loop_devices),
        mkfs(),
        check_kvm(&kvm),
        guest_kernel(&KernelStore::new(state_dir.join(guest::IN_STATE)), &kvm),
        disk(existing, disk_free),
        check_memory(memory_total, memory_available, cpus),
    ];
    HostFacts {
        architecture: uname.machine().to_string_lossy().into_owned(),
        kernel,
        cpus,
        memory_total,
        memory_available,
        disk_free,
        cgroup: cgroups.map(|cgroups| cgroups.version()),
        kvm_runs_guest_code: kvm == kvm::KvmState::RunsGuestCode,
        idmapped_layers: layers.is_ok(),
        checks,
    }
}

/// Names of the checks that only root can make.
const NFTABLES: &str = "nftables";
const OVERLAYFS: &str = "overlayfs";
const IDMAPPED_MOUNTS: &str = "idmapped-mounts";
const LOOP_DEVICES: &str = "loop-devices";

/// Nothing is known: what fails for want of privileges says nothing of the host.
fn needs_root(name: &str) -> Check {
    Check::warn(name, "not tried: only root can", "sudo coracle doctor")
}

/// Capabilities that the agent uses, by number (linux/capability.h).
const CAPABILITIES: [(&str, u32); 11] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_MKNOD", 27),
];

fn privileges() -> Check {
    const NAME: &str = "privileges";
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    let uid = rustix::process::geteuid();
    if missing.is_empty() && uid.is_root() {
        return Check::ok(NAME, "root");
    }
    let found = if missing.is_empty() {
        format!("user id {}", uid.as_raw())
    } else {
        format!("user id {}, without {}", uid.as_raw(), missing.join(", "))
    };
    Check::fail(NAME, found, "run Coracle as root, with all capabilities (in a container: --privileged)")
}

fn kernel_version(release: &str) -> Check {
    const NAME: &str = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        // Id-mapped layers below overlayfs.
        (5, 19..) | (6.., _) => Check::ok(NAME, release),
        // Matching the input interface in postrouting (5.7) and idmapped mounts (5.12).
        (5, 12..) => Check::warn(
            NAME,
            release,
            "Linux 5.19 or later maps user ids below overlayfs; 6.1 is what is tested",
        ),
        _ => Check::fail(NAME, release, "use Linux 5.12 or later; 6.1 or later is what is tested"),
    }
}

fn check_cgroups(cgroups: Option<&Cgroups>) -> Check {
    const NAME: &str = "cgroups";
    match cgroups.map(Cgroups::version) {
        Some(Version::V2) => Check::ok(NAME, "version 2 with cpu, memory and pids"),
        Some(Version::V1) => Check::ok(NAME, "version 1 with cpu, memory and pids"),
        None => Check::fail(
            NAME,
            "no hierarchy with cpu, memory and pids is mounted",
            "mount cgroup2 on /sys/fs/cgroup; on a Raspberry Pi, boot with cgroup_enable=memory",
        ),
    }
}

/// Applies the real rules, connection tracking and NAT included, where nothing is.
fn nftables() -> Check {
    const NAME: &str = NFTABLES;
    let rules = firewall::router_rules(Ipv4Addr::new(172, 31, 0, 2)) + &firewall::host_rules("doctor", &[]);
    let tried = netns::create_anonymous()
        .and_then(|netns| netns::run_in(netns.as_fd(), || Ok(firewall::apply(&rules))));
    match tried {
        Ok(Ok(())) => Check::ok(NAME, "sets, connection tracking, reject and NAT work"),
        Ok(Err(error)) => Check::fail(
            NAME,
            chain(&error),
            "install the package nftables; the kernel needs nf_tables, nf_conntrack, nft_ct, nft_reject_inet, nft_masq",
        ),
        Err(error) => Check::fail(
            NAME,
            format!("no network namespace can be made: {error}"),
            "run as root, on a kernel with network namespaces",
        ),
    }
}

fn forwarding() -> Check {
    const NAME: &str = "forwarding";
    let on = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1");
    let state = if on { "on" } else { "off; Coracle switches it on for its tasks' NAT" };
    match firewall::foreign_forward_chain() {
        None => Check::ok(NAME, format!("net.ipv4.ip_forward is {state}")),
        Some(chain) => Check::ok(
            NAME,
            format!(
                "net.ipv4.ip_forward is {state}; iptables drops by default, Coracle adds its links to {chain}"
            ),
        ),
    }
}

fn overlay() -> Check {
    const NAME: &str = OVERLAYFS;
    match mounts::overlay() {
        Ok(()) => Check::ok(NAME, "mounts and takes writes"),
        Err(error) => Check::fail(NAME, error.to_string(), "the kernel needs overlayfs (modprobe overlay)"),
    }
}

fn user_namespaces(layers: &Result<(), mounts::IdmapError>) -> Check {
    const NAME: &str = "user-namespaces";
    if let Err(mounts::IdmapError::UserNamespace(error)) = layers {
        return Check::fail(
            NAME,
            format!("none can be made: {error}"),
            "set sysctl user.max_user_namespaces to a few thousand",
        );
    }
    let maximum = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    Check::ok(NAME, format!("allowed, at most {}", maximum.trim()))
}

fn idmapped(layers: &Result<(), mounts::IdmapError>) -> Check {
    const NAME: &str = IDMAPPED_MOUNTS;
    match layers {
        Ok(()) => Check::ok(NAME, "work, also as layers of overlayfs"),
        Err(error) => Check::warn(
            NAME,
            error.to_string(),
            "keep the state directory on ext4, xfs or btrfs, on Linux 5.19 or later; until then layers cannot be shared between user namespaces",
        ),
    }
}

fn seccomp() -> Check {
    const NAME: &str = "seccomp";
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => Check::ok(NAME, "filters are available"),
        _ => {
            Check::fail(NAME, "the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER")
        }
    }
}

fn loop_devices() -> Check {
    const NAME: &str = LOOP_DEVICES;
    let tried = tempfile_with(1 << 20).and_then(|file| loop_device::attach(&file));
    match tried {
        Ok(_) => Check::ok(NAME, "a file can be attached"),
        Err(error) => Check::fail(
            NAME,
            error.to_string(),
            "modprobe loop; in a container, give it /dev/loop-control and the loop devices",
        ),
    }
}

/// A file without a name, of zeros.
fn tempfile_with(size: u64) -> io::Result<fs::File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?);
    file.set_len(size)?;
    Ok(file)
}

fn mkfs() -> Check {
    const NAME: &str = "mkfs.ext4";
    let output = Command::new("mkfs.ext4").arg("-V").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("").to_owned();
            Check::ok(NAME, text)
        }
        Ok(output) => Check::fail(NAME, output.status.to_string(), "install the package e2fsprogs"),
        Err(error) => Check::fail(NAME, error.to_string(), "install the package e2fsprogs"),
    }
}

fn check_kvm(state: &kvm::KvmState) -> Check {
    const NAME: &str = "kvm";
    const CONTAINER: &str = "tasks run in containers instead of microVMs";
    match state {
        kvm::KvmState::RunsGuestCode => {
            Check::ok(NAME, "runs a 64-bit test guest with floating point (a Linux guest was not tried)")
        }
        kvm::KvmState::Absent => Check::warn(
            NAME,
            "there is no /dev/kvm",
            format!(
                "switch on virtualisation in the firmware, or nesting on a cloud machine; until then, {CONTAINER}"
            ),
        ),
        kvm::KvmState::Inaccessible(reason) => {
            Check::warn(NAME, format!("/dev/kvm: {reason}"), format!("until it opens, {CONTAINER}"))
        }
        kvm::KvmState::Unusable(reason) => Check::warn(
            NAME,
            reason.as_str(),
            format!("the hypervisor below does not really offer nesting; {CONTAINER}"),
        ),
    }
}

fn guest_kernel(store: &KernelStore, kvm: &kvm::KvmState) -> Check {
    const NAME: &str = "guest-kernel";
    match store.newest() {
        Ok(Some(kernel)) => {
            let (release, version) = (&kernel.description().release, &kernel.description().version);
            Check::ok(NAME, format!("{release}, version {version}"))
        }
        Ok(None) if matches!(kvm, kvm::KvmState::RunsGuestCode) => {
            Check::warn(NAME, "none", "coracle kernel install; until then, tasks run in containers")
        }
        Ok(None) => Check::ok(NAME, "none, and of no use without KVM"),
        Err(error) => Check::warn(NAME, error.to_string(), "as root, more can be told"),
    }
}

fn disk(path: &Path, free: u64) -> Check {
    const NAME: &str = "disk";
    let gib = free >> 30;
    let found = format!("{gib} GiB free at {}", path.display());
    if gib >= scratch::DEFAULT_GIB + 5 {
        return Check::ok(NAME, found);
    }
    Check::warn(
        NAME,
        found,
        format!("a task is promised {} GiB by default, images come on top", scratch::DEFAULT_GIB),
    )
}

fn check_memory(total: u64, available: u64, cpus: u64) -> Check {
    const NAME: &str = "memory-and-cpus";
    let found = format!("{} MiB of {} MiB available, {cpus} CPUs", available >> 20, total >> 20);
    // The smallest Fargate task has 512 MiB.
    if available >= 1 << 30 {
        return Check::ok(NAME, found);
    }
    Check::warn(NAME, found, "the smallest task has 512 MiB")
}

/// Total and available memory in bytes; zero when unknown.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    (value("MemTotal:"), value("MemAvailable:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_version() {
        assert_eq!(kernel_version("6.1.0-18-amd64").status, Status::Ok);
        assert_eq!(kernel_version("5.19.0").status, Status::Ok);
        assert_eq!(kernel_version("5.15.0-91-generic").status, Status::Warn);
        assert_eq!(kernel_version("4.18.0-553.el8").status, Status::Fail);
        assert_eq!(kernel_version("").status, Status::Fail);
    }

    #[test]
    fn little_is_warned_of() {
        assert_eq!(disk(Path::new("/"), 10 << 30).status, Status::Warn);
        assert_eq!(disk(Path::new("/"), 100 << 30).status, Status::Ok);
        assert_eq!(check_memory(1 << 30, 500 << 20, 1).status, Status::Warn);
    }
}
