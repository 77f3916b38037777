//! What the agent and a task's supervisor say to each other.
//!
//! The supervisor listens; the agent connects, and reconnects after a restart of either end. One
//! task, one supervisor, one agent connection at a time: a new connection replaces the old one.
//! Frames are a big-endian `u32` length and a JSON document of at most [`MAX_FRAME`] bytes. The
//! same protocol is spoken over a Unix socket (container sandbox) and vsock (microVM).
//!
//! Everything the supervisor says is repeatable: it sends its whole [`SandboxState`] at each
//! connection and after each change, and log batches until they are acknowledged.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::TaskId;
use crate::spec::{ContainerSpec, VolumeSpec};
use crate::status::{ContainerStatus, HealthStatus, StopCause};
use crate::time::Timestamp;

/// The longest frame either side accepts, in bytes.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

/// Agent to supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToSupervisor {
    /// Run this task. Said again (after a reconnect) it changes nothing.
    Run { spec: Box<SandboxSpec> },
    /// Stop all containers in reverse order of their dependencies: stop signal, timeout, SIGKILL.
    Stop { cause: StopCause },
    /// Log records of `container` below this offset are stored for good and may be forgotten.
    AckLogs { container: String, upto: u64 },
    /// The agent has recorded the final state: end, and take everything along.
    Release,
}

/// Supervisor to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromSupervisor {
    State { state: SandboxState },
    Logs { batch: LogBatch },
}

/// A task, ready to run: images are unpacked, the network interface is configured from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub task: TaskId,
    pub hostname: String,
    pub address: Ipv4Addr,
    pub resolver: Ipv4Addr,
    pub search_domain: Option<String>,
    /// Below it, each container gets `<cgroup_parent>/<container>`; libcontainer's `cgroupsPath`.
    /// `None` inside a microVM.
    pub cgroup_parent: Option<String>,
    /// The sparse ext4 file (or block device) for writable layers and volumes.
    pub scratch: PathBuf,
    pub volumes: Vec<VolumeSpec>,
    pub share_pid_namespace: bool,
    pub containers: Vec<SandboxContainer>,
}

/// A container with its image resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxContainer {
    pub spec: ContainerSpec,
    pub image: ImageConfig,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Given to the process beside its own environment, such as `ECS_CONTAINER_METADATA_URI_V4`.
    pub extra_environment: Vec<(String, String)>,
}

/// The part of an OCI image configuration that running needs.
///
/// Source: OCI image-spec, "OCI Image Configuration".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    /// Such as `SIGTERM` or `15`; empty means SIGTERM.
    pub stop_signal: String,
    /// Paths that the image declares as volumes.
    pub volumes: Vec<String>,
}

/// The whole of what a supervisor knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxState {
    /// `None` until told to run.
    pub task: Option<TaskId>,
    /// Grows with each change.
    pub sequence: u64,
    pub phase: SandboxPhase,
    pub containers: Vec<ContainerState>,
    /// Why the task stops, once it does.
    pub stop: Option<StopCause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxPhase {
    /// Pre-started, without a task.
    Idle,
    /// Containers are being started, in the order of their dependencies.
    Starting,
    /// Every container was started (and some may have ended already).
    Running,
    /// Containers are being stopped.
    Stopping,
    /// No container runs. Logs may still wait to be acknowledged.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    pub name: String,
    pub status: ContainerStatus,
    pub runtime_id: Option<String>,
    /// The host's pid of the container's first process, while it runs.
    pub pid: Option<i32>,
    pub exit_code: Option<i32>,
    pub reason: Option<String>,
    pub health: HealthStatus,
    pub restart_count: u32,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// Offset after the last log record: all logs are stored when this is acknowledged.
    pub log_end: u64,
    /// How many of these an agent has acknowledged: those it will never see again.
    #[serde(default)]
    pub log_acknowledged: u64,
}

/// Consecutive log records of one container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogBatch {
    pub container: String,
    /// Offset of the first record. Offsets count records, over restarts of the container.
    pub first: u64,
    pub records: Vec<LogRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogRecord {
    pub at: Timestamp,
    /// One line without its line feed; bytes that are not UTF-8 are replaced (U+FFFD).
    pub line: String,
}
