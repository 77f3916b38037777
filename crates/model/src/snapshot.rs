//! Snapshots of running tasks, from which new tasks start.
//!
//! A snapshot's facts have one writer each, as a task's have: [`Snapshot`] is intent, written by API
//! handlers; [`SnapshotReport`] is what its host says of it, written by host sessions.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, ClusterName, HostId, Region, SnapshotId, TaskId};
use crate::time::Timestamp;

/// The tag by which a run request asks for tasks that go on where a snapshot was made; its value is
/// the snapshot's id.
pub const SNAPSHOT_TAG: &str = "coracle.snapshot";

/// The intent: this task's machine shall be written down, and kept until the record is deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub account: AccountId,
    pub region: Region,
    pub cluster: ClusterName,
    pub task: TaskId,
    /// The task definition's.
    pub family: String,
    pub revision: u32,
    pub cpu_units: u32,
    pub memory_mib: u32,
    pub ephemeral_storage_gib: u32,
    /// Where the task runs, and the snapshot stays.
    pub host: HostId,
    pub created_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SnapshotStatus {
    /// Not yet made.
    Pending,
    /// Tasks can be started from it.
    Ready,
    /// There is none, and there will be none.
    Failed,
}

impl SnapshotStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Ready => "READY",
            Self::Failed => "FAILED",
        }
    }
}

/// What the host says of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    pub id: SnapshotId,
    pub status: SnapshotStatus,
    /// Why it failed.
    pub reason: Option<String>,
    /// When the task's machine stood still; milliseconds that it did.
    pub made_at: Option<Timestamp>,
    pub paused_ms: u64,
    /// Bytes that the machine's memory takes on the host's disk.
    pub memory_bytes: u64,
    /// Bytes that the task's disk takes there, where they are not shared with another file.
    pub disk_bytes: u64,
}

impl SnapshotReport {
    #[must_use]
    pub fn failed(id: SnapshotId, reason: impl Into<String>) -> Self {
        Self {
            id,
            status: SnapshotStatus::Failed,
            reason: Some(reason.into()),
            made_at: None,
            paused_ms: 0,
            memory_bytes: 0,
            disk_bytes: 0,
        }
    }
}

/// Where a task begins, if not with its images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSource {
    pub id: SnapshotId,
    /// The only host that has it.
    pub host: HostId,
}
