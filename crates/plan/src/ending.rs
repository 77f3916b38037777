//! How tasks stop, and when they are forgotten.

use model::assignment::{Assignment, Decision, Stopping};
use model::status::{StopCause, StopCode, TaskStatus};
use model::task::Task;
use model::{TaskId, Timestamp};

use crate::PendingTask;

/// Stopped tasks stay describable for an hour.
/// Source: `DescribeTasks` in the ECS API reference.
pub const REMEMBERED_SECONDS: i64 = 3600;

pub(crate) fn failed_to_start(reason: &str) -> StopCause {
    StopCause { code: StopCode::TaskFailedToStart, reason: reason.to_owned() }
}

/// Why the intent says that the task shall stop.
pub(crate) fn requested(task: &Task) -> StopCause {
    task.stop.as_ref().map_or_else(
        || StopCause { code: StopCode::UserInitiated, reason: "Task stopped by user".to_owned() },
        |stop| stop.cause.clone(),
    )
}

/// The decision that stops a placed task; `None` when it stops or has stopped already.
pub(crate) fn stop(task: &PendingTask, assignment: &Assignment, now: Timestamp) -> Option<Decision> {
    if task.observed == Some(TaskStatus::Stopped) {
        return None;
    }
    match &assignment.decision {
        Decision::Placed { host, eni, stop: None } => Some(Decision::Placed {
            host: host.clone(),
            eni: eni.clone(),
            stop: Some(Stopping { at: now, cause: requested(&task.intent) }),
        }),
        Decision::Placed { .. } | Decision::Refused { .. } => None,
    }
}

pub(crate) fn expired(ended: &[(TaskId, Timestamp)], now: Timestamp) -> Vec<TaskId> {
    ended
        .iter()
        .filter(|(_, stopped_at)| now >= stopped_at.plus_seconds(REMEMBERED_SECONDS))
        .map(|(task, _)| task.clone())
        .collect()
}
