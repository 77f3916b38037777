//! Hosts: the machines that tasks run on.

use serde::{Deserialize, Serialize};

use crate::id::HostId;
use crate::spec::Isolation;
use crate::time::Timestamp;

/// What a host says of itself when it connects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub id: HostId,
    /// Changes when the agent's state directory is new: what was assigned before is then gone.
    pub incarnation: String,
    pub capacity: Resources,
    /// What can isolate tasks there.
    pub isolations: Vec<Isolation>,
    /// OCI's name, such as `amd64`.
    pub architecture: String,
    pub connected_at: Timestamp,
}

/// An amount of what tasks use up. On a host it is what may be promised in total, the operator's
/// overcommitment included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// 1024 units are one vCPU.
    pub cpu_units: u64,
    pub memory_mib: u64,
    pub storage_gib: u64,
}

impl Resources {
    #[must_use]
    pub fn holds(self, other: Self) -> bool {
        self.cpu_units >= other.cpu_units
            && self.memory_mib >= other.memory_mib
            && self.storage_gib >= other.storage_gib
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_units: self.cpu_units.saturating_add(other.cpu_units),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            storage_gib: self.storage_gib.saturating_add(other.storage_gib),
        }
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_units: self.cpu_units.saturating_sub(other.cpu_units),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            storage_gib: self.storage_gib.saturating_sub(other.storage_gib),
        }
    }
}

impl crate::spec::TaskSpec {
    /// What this task uses up on a host.
    #[must_use]
    pub fn resources(&self) -> Resources {
        Resources {
            cpu_units: self.cpu_units.into(),
            memory_mib: self.memory_mib.into(),
            storage_gib: self.ephemeral_storage_gib.into(),
        }
    }
}
