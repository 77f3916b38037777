//! What a host shall run: written by the reconciler only.

use serde::{Deserialize, Serialize};

use crate::id::{HostId, TaskId};
use crate::network::Eni;
use crate::status::StopCause;
use crate::time::Timestamp;

/// The planner's decision about one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub task: TaskId,
    pub decided_at: Timestamp,
    pub decision: Decision,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The task runs on this host, or ends there if `stop` is set.
    Placed { host: HostId, eni: Eni, stop: Option<Stopping> },
    /// The task never reaches a host.
    Refused { cause: StopCause },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    pub at: Timestamp,
    pub cause: StopCause,
}

impl Assignment {
    #[must_use]
    pub fn host(&self) -> Option<&HostId> {
        match &self.decision {
            Decision::Placed { host, .. } => Some(host),
            Decision::Refused { .. } => None,
        }
    }
}
