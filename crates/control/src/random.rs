//! Randomness for identifiers.

use model::{SnapshotId, TaskId};

/// A new task id.
#[must_use]
pub fn task_id() -> TaskId {
    TaskId::from_random(rand::random())
}

/// A new snapshot id.
#[must_use]
pub fn snapshot_id() -> SnapshotId {
    SnapshotId::from_random(rand::random())
}

/// A UUID, version 4.
#[must_use]
pub fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
