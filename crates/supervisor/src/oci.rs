//! The OCI runtime specification of a container.
//!
//! Source: OCI runtime-spec; the mounts, masked paths and limits are those that Docker and Fargate
//! give a container.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::spec::{ContainerSpec, Tmpfs};
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::cgroup::Cgroup;
use crate::devices::Device;
use crate::image_user::ImageUser;
use crate::sandbox::NETNS_PATH;

const DEFAULT_SHM_MIB: u32 = 64;
/// "ulimits" in the ECS developer guide: Fargate's soft and hard limit of open files.
const DEFAULT_NOFILE: u64 = 65535;

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
// The directory that holds version 1's hierarchies is a tmpfs, which is mounted writable.
const READONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"];

/// A directory or file of the sandbox that the container sees.
#[derive(Clone, Debug)]
pub struct Bind {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
}

/// Everything that goes into a specification, resolved.
pub struct Blueprint<'a> {
    pub spec: &'a ContainerSpec,
    pub hostname: &'a str,
    pub rootfs: &'a Path,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub working_directory: PathBuf,
    pub user: &'a ImageUser,
    pub capabilities: &'a HashSet<Capability>,
    /// Volumes, outermost destination first.
    pub volumes: Vec<Bind>,
    /// Files that are mounted over everything else.
    pub files: Vec<Bind>,
    pub cgroups_path: String,
    pub cgroup: &'a Cgroup,
    /// The task's user namespace, if it has one.
    pub user_namespace: Option<&'a Path>,
    /// Beside the usual ones.
    pub devices: &'a [Device],
    /// A PID namespace to join instead of a new one.
    pub pid_namespace: Option<&'a Path>,
    /// Whether the supervisor's out-of-memory score is low, and the container's must not be.
    pub raises_oom_score: bool,
}

/// Builds the specification.
///
/// # Errors
/// A value of the definition cannot be expressed, such as an unknown limit.
pub fn spec(blueprint: &Blueprint) -> Result<Spec> {
    let definition = blueprint.spec;
    let mut process = ProcessBuilder::default()
        .terminal(definition.tty)
        .user(
            UserBuilder::default()
                .uid(blueprint.user.uid)
                .gid(blueprint.user.gid)
                .additional_gids(blueprint.user.groups.clone())
                .build()?,
        )
        .args(blueprint.arguments.clone())
        .env(blueprint.environment.clone())
        .cwd(&blueprint.working_directory)
        .capabilities(capabilities(blueprint)?)
        .rlimits(limits(definition)?)
        .no_new_privileges(!definition.privileged)
        .build()?;
    if blueprint.raises_oom_score {
        process.set_oom_score_adj(Some(0));
    }
    let privileged = definition.privileged;
    let strings = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(blueprint)?)
        .cgroups_path(&blueprint.cgroups_path)
        .devices(blueprint.devices.iter().map(|device| device.node.clone()).collect::<Vec<_>>())
        .masked_paths(strings(if privileged { &[] } else { MASKED }))
        .readonly_paths(strings(if privileged { &[] } else { READONLY }))
        .build()?;
    // The supervisor sets limits itself.
    linux.set_resources(None);
    let root = RootBuilder::default()
        .path(blueprint.rootfs)
        .readonly(definition.readonly_root_filesystem)
        .build()?;
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .hostname(blueprint.hostname)
        .mounts(mounts(blueprint)?)
        .process(process)
        .linux(linux)
        .build()?;
    Ok(spec)
}

fn capabilities(blueprint: &Blueprint) -> Result<oci_spec::runtime::LinuxCapabilities> {
    let bounding = blueprint.capabilities.clone();
    // As Docker: a process that is not root holds none, and with no_new_privileges can gain none.
    let effective = if blueprint.user.uid == 0 { bounding.clone() } else { HashSet::new() };
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(effective.clone())
        .permitted(effective)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?)
}

fn namespaces(blueprint: &Blueprint) -> Result<Vec<LinuxNamespace>> {
    let join = |kind, path: &Path| LinuxNamespaceBuilder::default().typ(kind).path(path).build();
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let mut namespaces = vec![
        join(LinuxNamespaceType::Network, Path::new(NETNS_PATH))?,
        match blueprint.pid_namespace {
            Some(path) => join(LinuxNamespaceType::Pid, path)?,
            None => new(LinuxNamespaceType::Pid)?,
        },
        new(LinuxNamespaceType::Mount)?,
        new(LinuxNamespaceType::Ipc)?,
        new(LinuxNamespaceType::Uts)?,
        new(LinuxNamespaceType::Cgroup)?,
    ];
    if let Some(path) = blueprint.user_namespace {
        namespaces.insert(0, join(LinuxNamespaceType::User, path)?);
    }
    Ok(namespaces)
}

fn limits(definition: &ContainerSpec) -> Result<Vec<PosixRlimit>> {
    let infinity = nix::libc::RLIM_INFINITY;
    let (pending, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_SIGPENDING)?;
    // Those that a container would otherwise inherit unlimited from the supervisor.
    let defaults = [
        ("core", 0, infinity),
        ("memlock", 8 << 20, 8 << 20),
        ("msgqueue", 819_200, 819_200),
        ("nofile", DEFAULT_NOFILE, DEFAULT_NOFILE),
        ("nproc", infinity, infinity),
        ("sigpending", pending, pending),
        ("stack", 8 << 20, infinity),
    ];
    let mut limits = Vec::with_capacity(defaults.len());
    for (name, soft, hard) in defaults {
        if !definition.ulimits.iter().any(|ulimit| ulimit.name == name) {
            // Some hosts do not let their root raise limits: then what there is must do.
            let most = highest(limit_type(name)?);
            limits.push(limit(name, soft.min(most), hard.min(most))?);
        }
    }
    for ulimit in &definition.ulimits {
        let most = highest(limit_type(&ulimit.name)?);
        let (mut soft, mut hard) = (ulimit.soft, ulimit.hard);
        if hard == infinity && ulimit.name == "nofile" {
            // There is no such thing for the kernel (`fs.nr_open`).
            (soft, hard) = (soft.min(most), most);
        }
        if hard > most {
            let wanted = if hard == infinity { "no limit".to_owned() } else { hard.to_string() };
            bail!("ulimit {}: this host allows {most} at most, not {wanted}", ulimit.name);
        }
        limits.push(limit(&ulimit.name, soft, hard)?);
    }
    Ok(limits)
}

/// The highest hard limit that a child of the supervisor can have.
fn highest(kind: PosixRlimitType) -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    let resource = match kind {
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
    };
    getrlimit(resource).map_or(0, |(_, hard)| hard)
}

fn limit_type(name: &str) -> Result<PosixRlimitType> {
    Ok(match name {
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => bail!("invalid ulimit type: {name}"),
    })
}

fn limit(name: &str, soft: u64, hard: u64) -> Result<PosixRlimit> {
    if soft > hard {
        bail!("ulimit {name}: soft limit {soft} is greater than hard limit {hard}");
    }
    Ok(PosixRlimitBuilder::default().typ(limit_type(name)?).soft(soft).hard(hard).build()?)
}

fn mounts(blueprint: &Blueprint) -> Result<Vec<Mount>> {
    let definition = blueprint.spec;
    let shm_mib = definition.linux.shared_memory_mib.filter(|mib| *mib > 0).unwrap_or(DEFAULT_SHM_MIB);
    let shm = format!("size={}k", u64::from(shm_mib) * 1024);
    let access = access_to_kernel(definition);
    let mut mounts = vec![
        kernel("proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        kernel("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        kernel(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        kernel("sysfs", "/sys", &["nosuid", "noexec", "nodev", access])?,
        kernel("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    mounts.extend(cgroup_mounts(blueprint)?);
    let is_replaced = |path: &str| definition.linux.tmpfs.iter().any(|tmpfs| tmpfs.container_path == path);
    if !is_replaced("/dev/shm") {
        mounts.push(kernel("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm])?);
    }
    for tmpfs in &definition.linux.tmpfs {
        mounts.push(tmpfs_mount(tmpfs)?);
    }
    for bind in blueprint.volumes.iter().chain(&blueprint.files) {
        let access = if bind.read_only { "ro" } else { "rw" };
        mounts.push(
            MountBuilder::default()
                .destination(&bind.destination)
                .source(&bind.source)
                .typ("bind")
                .options(["bind", access, "nodev"].map(str::to_owned))
                .build()?,
        );
    }
    Ok(mounts)
}

/// How a container has sysfs and its control group.
fn access_to_kernel(definition: &ContainerSpec) -> &'static str {
    if definition.privileged { "rw" } else { "ro" }
}

/// The container's own control group.
fn cgroup_mounts(blueprint: &Blueprint) -> Result<Vec<Mount>> {
    let flags = ["nosuid", "noexec", "nodev", access_to_kernel(blueprint.spec)];
    let views = blueprint.cgroup.views();
    if views.is_empty() {
        return Ok(vec![kernel("cgroup", "/sys/fs/cgroup", &flags)?]);
    }
    let mut mounts =
        vec![kernel("tmpfs", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "mode=755", "size=64k"])?];
    for (dir, name) in views {
        mounts.push(
            MountBuilder::default()
                .destination(Path::new("/sys/fs/cgroup").join(name))
                .source(dir)
                .typ("bind")
                .options(["bind"].into_iter().chain(flags).map(str::to_owned).collect::<Vec<_>>())
                .build()?,
        );
    }
    Ok(mounts)
}

fn kernel(kind: &str, destination: &str, options: &[&str]) -> Result<Mount> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    Ok(MountBuilder::default().destination(destination).source(kind).typ(kind).options(options).build()?)
}

fn tmpfs_mount(tmpfs: &Tmpfs) -> Result<Mount> {
    // "mountOptions" of Tmpfs in the ECS API reference; what a task may not have is left to the
    // kernel to refuse, but never may an option bring in something of the host.
    const ALLOWED: &[&str] = &[
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ];
    const WITH_VALUE: &[&str] = &["mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
    let mut options = vec!["nodev".to_owned(), "nosuid".to_owned(), format!("size={}m", tmpfs.size_mib)];
    for option in &tmpfs.mount_options {
        match option.split_once('=') {
            Some((name, _)) if WITH_VALUE.contains(&name) => options.push(option.clone()),
            None if ALLOWED.contains(&option.as_str()) => {
                if !matches!(option.as_str(), "dev" | "suid" | "defaults") {
                    options.push(option.clone());
                }
            }
            _ => bail!("invalid tmpfs option {option:?}"),
        }
    }
    let destination = Path::new(&tmpfs.container_path);
    if !destination.is_absolute() {
        bail!("tmpfs path {:?} is not absolute", tmpfs.container_path);
    }
    MountBuilder::default()
        .destination(destination)
        .source("tmpfs")
        .typ("tmpfs")
        .options(options)
        .build()
        .context("tmpfs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::container;
    use model::spec::Ulimit;

    #[test]
    fn limits_of_the_definition_replace_defaults() {
        let mut definition = container().spec;
        definition.ulimits = vec![Ulimit { name: "nofile".into(), soft: 10, hard: 20 }];
        let limits = limits(&definition).unwrap();
        let nofile: Vec<_> =
            limits.iter().filter(|limit| limit.typ() == PosixRlimitType::RlimitNofile).collect();
        assert!(matches!(nofile[..], [limit] if limit.soft() == 10 && limit.hard() == 20));
        assert!(limit("nofile", 2, 1).is_err() && limit("flight", 1, 1).is_err());
    }

    #[test]
    fn tmpfs_options_are_checked() {
        let mut tmpfs = Tmpfs {
            container_path: "/t".into(),
            size_mib: 5,
            mount_options: vec!["noexec".into(), "mode=700".into()],
        };
        let mount = tmpfs_mount(&tmpfs).unwrap();
        assert_eq!(mount.options().as_ref().unwrap(), &["nodev", "nosuid", "size=5m", "noexec", "mode=700"]);
        for option in ["bind", "shared", "size=1t", "lowerdir=/"] {
            tmpfs.mount_options = vec![option.into()];
            assert!(tmpfs_mount(&tmpfs).is_err(), "{option}");
        }
    }
}
