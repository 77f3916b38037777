//! What control and an agent say to each other.
//!
//! The agent dials control. In `coracle up` both ends live in one process and these messages pass
//! through channels ([`pair`]); across hosts the same messages will travel over mutual TLS.
//!
//! Control says what a host shall run as a delta between two *generations*; an agent that cannot
//! apply a delta (another base) asks for the whole by saying hello again. The agent says what it
//! sees; what it says twice is stored once.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::host::Host;
use model::network::{Eni, Subnet};
use model::observation::Observation;
use model::sandbox::LogBatch;
use model::snapshot::SnapshotReport;
use model::spec::TaskSpec;
use model::status::StopCause;
use model::{AccountId, ClusterName, Region, Secret, SnapshotId, TaskId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Control to agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    Assign(AssignmentDelta),
    /// The session broke on control's side: say hello again, then everything that is not recorded.
    SayHello,
    /// Log records below `upto` of this container are durable.
    LogsStored {
        task: TaskId,
        container: String,
        upto: u64,
    },
    /// These records cannot be stored (the reason was reported); the agent may drop them.
    LogsRefused {
        task: TaskId,
        container: String,
        upto: u64,
        reason: String,
    },
    /// All snapshots that this host shall have: it makes those that it has not, and removes all
    /// others. Said at the beginning of a session and after each change.
    Snapshots {
        wanted: Vec<SnapshotOrder>,
    },
}

/// Agent to control.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToControl {
    /// First message of a session, and again whenever the agent needs the whole assignment.
    Hello {
        host: Host,
        generation: u64,
    },
    Report {
        observation: Observation,
    },
    Logs {
        task: TaskId,
        batch: LogBatch,
    },
    /// How far the pull of a container's image is. Lossy, and never stored: it is for whoever watches at this moment.
    Pulling {
        task: TaskId,
        container: String,
        progress: PullProgress,
    },
    /// What became of a snapshot. Said again whenever the snapshot is asked for again.
    Snapshot {
        report: SnapshotReport,
    },
}

/// A snapshot that a host shall have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOrder {
    pub id: SnapshotId,
    /// Of this task, as it runs when the host hears of it.
    pub task: TaskId,
}

/// How far a pull is. What the host had already counts as done with the layers, and not with the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    pub layers_total: u64,
    pub layers_done: u64,
    /// Compressed bytes to download.
    pub bytes_total: u64,
    pub bytes_done: u64,
}

/// A change of what a host shall run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssignmentDelta {
    /// The generation this applies to; `None` replaces everything.
    pub base: Option<u64>,
    /// The generation after it. Grows with every delta; an agent refuses older ones.
    pub generation: u64,
    pub upsert: Vec<Arc<TaskAssignment>>,
    /// Tasks whose end is recorded: the agent forgets them.
    pub remove: Vec<TaskId>,
}

/// One task on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskAssignment {
    pub task: TaskId,
    pub account: AccountId,
    pub region: Region,
    pub cluster: ClusterName,
    pub spec: TaskSpec,
    pub eni: Eni,
    pub subnet: Subnet,
    pub registry: RegistryAccess,
    /// Set when the task shall end.
    pub stop: Option<StopCause>,
}

/// How to pull those of a task's images that live in the built-in registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegistryAccess {
    /// Where the registry listens, such as `http://127.0.0.1:4566`.
    pub endpoint: String,
    /// By image reference, as the task's containers have it.
    pub images: BTreeMap<String, RegistryImage>,
}

/// One image in the built-in registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegistryImage {
    pub username: String,
    /// Good for pulling from the image's repository only, and not for long.
    pub password: Secret,
}

/// Why an agent cannot apply a delta.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    #[error("generation {offered} is older than generation {held}, which this host already has")]
    Stale { held: u64, offered: u64 },
    #[error("the change applies to generation {base}, and this host has generation {held}")]
    OtherBase { held: u64, base: u64 },
}

impl AssignmentDelta {
    /// Whether an agent at generation `held` may apply this.
    ///
    /// # Errors
    /// The delta is stale, or is based on a generation that the agent does not have.
    pub fn check(&self, held: u64) -> Result<(), DeltaError> {
        if self.generation <= held {
            return Err(DeltaError::Stale { held, offered: self.generation });
        }
        match self.base {
            Some(base) if base != held => Err(DeltaError::OtherBase { held, base }),
            _ => Ok(()),
        }
    }
}

/// Control's end of a session.
pub struct ControlEnd {
    /// Never waits: an agent that falls behind must not hold up control, and with it itself. What can
    /// be under way is bounded by what the agent sent: its tasks and its unacknowledged logs.
    pub to_agent: mpsc::UnboundedSender<ToAgent>,
    pub from_agent: mpsc::Receiver<ToControl>,
}

/// The agent's end of a session.
pub struct AgentEnd {
    pub to_control: mpsc::Sender<ToControl>,
    pub from_control: mpsc::UnboundedReceiver<ToAgent>,
}

/// Both ends of a session within one process. An agent waits when control is behind, control never
/// waits for an agent.
#[must_use]
pub fn pair() -> (ControlEnd, AgentEnd) {
    let (to_agent, from_control) = mpsc::unbounded_channel();
    let (to_control, from_agent) = mpsc::channel(256);
    (ControlEnd { to_agent, from_agent }, AgentEnd { to_control, from_control })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_refuse_stale_and_foreign_deltas() {
        let delta = |base, generation| AssignmentDelta { base, generation, upsert: vec![], remove: vec![] };
        assert_eq!(delta(Some(4), 5).check(4), Ok(()));
        assert_eq!(delta(None, 9).check(4), Ok(()));
        assert_eq!(delta(Some(3), 5).check(4), Err(DeltaError::OtherBase { held: 4, base: 3 }));
        assert_eq!(delta(None, 4).check(4), Err(DeltaError::Stale { held: 4, offered: 4 }));
    }
}
