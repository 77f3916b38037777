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

/// How long a frozen task waits for its agent, in seconds of the machine's own clock (which stands
/// still while the machine does).
pub const FREEZE_SECONDS: u64 = 60;

/// Agent to supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToSupervisor {
    /// Run this task. Said again (after a reconnect) it changes nothing.
    Run {
        spec: Box<SandboxSpec>,
    },
    /// Stop all containers in reverse order of their dependencies: stop signal, timeout, SIGKILL.
    Stop {
        cause: StopCause,
    },
    /// Log records of `container` below this offset are stored for good and may be forgotten.
    AckLogs {
        container: String,
        upto: u64,
    },
    /// What the wall clock says: a microVM's runs by itself, and stands while the machine is paused.
    /// The message is as late as it is long on its way.
    Clock {
        now: Timestamp,
    },
    /// The agent has recorded the final state: end, and take everything along.
    Release,
    /// In a microVM: let no process of the task run until [`ToSupervisor::Thaw`] or
    /// [`ToSupervisor::Adopt`]; the answer is [`FromSupervisor::Frozen`]. The machine is to be written
    /// down, and its copies must not do anything before they know what they are. An agent that does
    /// not come back is not waited for longer than [`FREEZE_SECONDS`].
    Freeze,
    Thaw,
    /// The machine is a copy of another task's, and belongs to this task from now on. What was not
    /// yet said of the other task's output is the other machine's to say.
    Adopt {
        identity: Box<Identity>,
    },
}

/// Supervisor to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromSupervisor {
    State {
        state: SandboxState,
    },
    Logs {
        batch: LogBatch,
    },
    /// The answer to [`ToSupervisor::Freeze`]: nothing of the task runs, or why that cannot be.
    Frozen {
        failure: Option<String>,
    },
}

/// What is a task's own when all else of it is a copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub task: TaskId,
    pub hostname: String,
    pub address: Ipv4Addr,
    pub resolver: Ipv4Addr,
    pub search_domain: Option<String>,
    pub guest: GuestSetup,
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
    /// The sparse ext4 file (or block device) for writable layers and volumes; in a microVM
    /// [`SCRATCH_DEVICE`](crate::microvm::SCRATCH_DEVICE).
    pub scratch: PathBuf,
    pub volumes: Vec<VolumeSpec>,
    pub share_pid_namespace: bool,
    pub containers: Vec<SandboxContainer>,
    /// What a microVM's supervisor sets up itself; `None` in a container sandbox, whose agent does it
    /// from outside.
    pub guest: Option<GuestSetup>,
}

/// A guest's place in the world. A guest may be a copy of another: all of it is given anew.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestSetup {
    pub mac: [u8; 6],
    /// The default route, reached directly: the address itself has a /32 route.
    pub gateway: Ipv4Addr,
    /// The router's end of the link: the guest asks nobody for it.
    pub gateway_mac: [u8; 6],
    pub mtu: u16,
    /// What the task's containers may use together. The guest has more, for its kernel and supervisor.
    pub memory_mib: u32,
    /// Processes and threads that the task's containers may have together.
    pub pids_max: u64,
    /// The wall clock.
    pub now: Timestamp,
    /// Stirred into the guest kernel's random number generator before anything of the task runs; hex.
    pub entropy: String,
}

impl std::fmt::Debug for GuestSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestSetup")
            .field("mac", &self.mac)
            .field("gateway", &self.gateway)
            .field("gateway_mac", &self.gateway_mac)
            .field("mtu", &self.mtu)
            .field("memory_mib", &self.memory_mib)
            .field("pids_max", &self.pids_max)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

/// Where an image layer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Layer {
    /// Unpacked on the host.
    Directory { path: PathBuf },
    /// An EROFS image in a guest's first disk ([`LAYERS_DEVICE`](crate::microvm::LAYERS_DEVICE)), from
    /// `offset` on; bytes.
    Extent { offset: u64, length: u64 },
}

/// A container with its image resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxContainer {
    pub spec: ContainerSpec,
    pub image: ImageConfig,
    /// Lowest first.
    pub layers: Vec<Layer>,
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
