//! What a host saw of a task: written by host sessions only.

use serde::{Deserialize, Serialize};

use crate::id::TaskId;
use crate::status::{ContainerStatus, HealthStatus, StopCause, TaskStatus};
use crate::time::Timestamp;

/// The whole of what is known of a task's run. A later observation replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub task: TaskId,
    /// Grows by one with each change on the host; older ones are ignored.
    pub sequence: u64,
    pub status: TaskStatus,
    pub times: TaskTimes,
    pub containers: Vec<ContainerObservation>,
    /// Why the task stops, once it does.
    pub stop: Option<StopCause>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTimes {
    /// The network interface was attached.
    pub connected_at: Option<Timestamp>,
    pub pull_started_at: Option<Timestamp>,
    pub pull_stopped_at: Option<Timestamp>,
    /// The task became RUNNING.
    pub started_at: Option<Timestamp>,
    /// The host began to stop it.
    pub stopping_at: Option<Timestamp>,
    /// The last container ended.
    pub execution_stopped_at: Option<Timestamp>,
    /// All of it was removed.
    pub stopped_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerObservation {
    pub name: String,
    pub status: ContainerStatus,
    /// Names this run of the container; changes with a restart.
    pub runtime_id: Option<String>,
    /// `sha256:…` of the manifest the image reference resolved to.
    pub image_digest: Option<String>,
    /// 128 + N when ended by signal N, as shells say it.
    pub exit_code: Option<i32>,
    /// Why the container did not start or ended badly, in AWS's words.
    pub reason: Option<String>,
    pub health: HealthStatus,
    pub restart_count: u32,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl ContainerObservation {
    #[must_use]
    pub fn pending(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: ContainerStatus::Pending,
            runtime_id: None,
            image_digest: None,
            exit_code: None,
            reason: None,
            health: HealthStatus::Unknown,
            restart_count: 0,
            started_at: None,
            finished_at: None,
        }
    }
}
