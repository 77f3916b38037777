//! What a task shall be: the compiled form of a task definition and a run request's overrides.
//!
//! A task keeps the specification it was started with; a later revision of its definition does not
//! change it. Units and defaults are those of "Task definition parameters for Fargate" in the ECS
//! developer guide.

use serde::{Deserialize, Serialize};

use crate::snapshot::SnapshotSource;

/// What isolates a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    #[default]
    Container,
    Microvm,
}

impl Isolation {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Microvm => "microvm",
        }
    }
}

/// A task as a host runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub family: String,
    pub revision: u32,
    /// 1024 units are one vCPU.
    pub cpu_units: u32,
    pub memory_mib: u32,
    /// Ephemeral storage, shared by the images' writable layers and the volumes.
    pub ephemeral_storage_gib: u32,
    pub volumes: Vec<VolumeSpec>,
    /// In the order of the definition; names are unique.
    pub containers: Vec<ContainerSpec>,
    /// `pidMode: task`: the containers see each other's processes.
    pub share_pid_namespace: bool,
    /// `amd64` or `arm64`, OCI's names.
    pub architecture: String,
    pub isolation: Isolation,
    /// A snapshot of a task of the same definition: the task goes on from there.
    #[serde(default)]
    pub snapshot: Option<SnapshotSource>,
}

/// A directory on the task's ephemeral storage that containers share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub name: String,
}

/// One container. What is `None` or empty comes from the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// The image reference as the user wrote it.
    pub image: String,
    pub essential: bool,
    pub entry_point: Option<Vec<String>>,
    pub command: Option<Vec<String>>,
    pub working_directory: Option<String>,
    /// `user`, `user:group`, with names or numbers.
    pub user: Option<String>,
    /// Later entries win over earlier ones and over the image's.
    pub environment: Vec<(String, String)>,
    /// Relative weight among the task's containers; 0 is the smallest (2 shares).
    pub cpu_shares: u32,
    /// Hard limit: a container above it is killed.
    pub memory_mib: Option<u32>,
    /// Soft limit.
    pub memory_reservation_mib: Option<u32>,
    pub depends_on: Vec<Dependency>,
    pub health_check: Option<HealthCheck>,
    /// Seconds that dependencies on this container may take to resolve.
    pub start_timeout_secs: Option<u32>,
    /// Seconds from the stop signal to SIGKILL (default 30).
    pub stop_timeout_secs: u32,
    pub restart_policy: Option<RestartPolicy>,
    pub ulimits: Vec<Ulimit>,
    pub linux: LinuxSpec,
    pub readonly_root_filesystem: bool,
    /// All capabilities and devices, and no filter, of the task's own kernel; only in a microVM.
    #[serde(default)]
    pub privileged: bool,
    pub mounts: Vec<MountSpec>,
    pub volumes_from: Vec<VolumesFrom>,
    /// Kernel parameters, such as `net.core.somaxconn`; in a microVM any, else namespaced ones.
    pub sysctls: Vec<(String, String)>,
    pub ports: Vec<PortMapping>,
    /// Keep standard input open (`interactive`).
    pub stdin_open: bool,
    /// Give the container a terminal (`pseudoTerminal`).
    pub tty: bool,
    pub extra_hosts: Vec<(String, String)>,
    pub docker_labels: Vec<(String, String)>,
    pub log: Option<LogSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub container: String,
    pub condition: DependencyCondition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DependencyCondition {
    /// The other container was started.
    Start,
    /// It ran to its end, with any exit code.
    Complete,
    /// It ran to its end with exit code 0.
    Success,
    /// Its health check passed.
    Healthy,
}

impl DependencyCondition {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "START",
            Self::Complete => "COMPLETE",
            Self::Success => "SUCCESS",
            Self::Healthy => "HEALTHY",
        }
    }
}

/// A command run inside the container; exit code 0 is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The argument vector to execute: `CMD-SHELL text` is already `["/bin/sh", "-c", text]`.
    pub command: Vec<String>,
    pub interval_secs: u32,
    pub timeout_secs: u32,
    pub retries: u32,
    pub start_period_secs: u32,
}

/// Restarts of one container without stopping the task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub ignored_exit_codes: Vec<i32>,
    /// A container must have run this long before it is restarted.
    pub attempt_period_secs: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The name without `RLIMIT_`, lower case, such as `nofile`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// `linuxParameters` of a container definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxSpec {
    /// Run an init as PID 1 that forwards signals and reaps children.
    pub init_process: bool,
    /// Capability names without `CAP_`, or `ALL`.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// Devices of the task's own kernel; only in a microVM.
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm` (default 64 MiB).
    pub shared_memory_mib: Option<u32>,
}

/// `devices` of `linuxParameters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Such as `/dev/fuse`.
    pub host_path: String,
    pub container_path: String,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    pub container_path: String,
    pub size_mib: u32,
    pub mount_options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Name of one of the task's volumes.
    pub volume: String,
    pub container_path: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFrom {
    pub container: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub container_port: u16,
    pub protocol: Protocol,
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

/// The `awslogs` driver, options resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    pub region: String,
    pub group: String,
    /// `prefix/container/task-id`.
    pub stream: String,
    pub create_group: bool,
    pub mode: LogMode,
    /// A line that matches starts a new event (`awslogs-multiline-pattern`).
    pub multiline_pattern: Option<String>,
}

/// What happens when log lines come faster than they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogMode {
    /// The container's writes wait.
    Blocking,
    /// Lines beyond this many buffered bytes are dropped.
    NonBlocking { max_buffer_bytes: u64 },
}
