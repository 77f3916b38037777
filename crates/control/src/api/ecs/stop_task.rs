//! StopTask.

use aws_api::Error;
use aws_api::ecs::{StopTaskRequest, StopTaskResponse};
use model::TaskStatus;
use model::status::{DesiredStatus, StopCause, StopCode};
use model::task::{StopRequest, Task};
use store::{Revision, Txn};

use super::errors::{contention, invalid, task_not_found};
use super::records::{self, Outcome};
use super::{Caller, Ecs, identifier, task_records, task_view};
use crate::keys::{TASKS, TaskPath};

const MAX_REASON: usize = 1024;

/// What asks for the end of a running task.
fn ask(ecs: &Ecs, path: &TaskPath, task: &mut Task, revision: Revision, reason: &str) -> Txn {
    task.desired = DesiredStatus::Stopped;
    task.stop = Some(StopRequest {
        at: ecs.clock.now(),
        cause: StopCause { code: StopCode::UserInitiated, reason: reason.to_owned() },
    });
    Txn::new().expect_revision(path.intent(), revision).put_json(path.intent(), task).put(path.pending(), "")
}

/// Asks for the end of every task of this server, whoever it belongs to; says how many there were.
pub async fn stop_all(ecs: &Ecs, reason: &str) -> Result<usize, Error> {
    let mut count = 0;
    let mut conflict = true;
    // A task that changed meanwhile is looked at again.
    while std::mem::take(&mut conflict) {
        for (key, found) in records::all::<Task>(&ecs.store, TASKS).await? {
            let Some(path) = TaskPath::of_key(TASKS, &key) else { continue };
            let mut known = task_records::complete(&ecs.store, &path, found.value).await?;
            if known.task.desired != DesiredStatus::Running || known.status() == TaskStatus::Stopped {
                continue;
            }
            let txn = ask(ecs, &path, &mut known.task, found.revision, reason);
            match records::commit(&ecs.store, txn).await? {
                Outcome::Conflict => conflict = true,
                Outcome::Committed => count += 1,
            }
        }
    }
    ecs.wake.notify_one();
    Ok(count)
}

/// Asks for the end of a task. One that was asked to end before, or has ended, stays as it is.
pub async fn handle(ecs: &Ecs, caller: &Caller, input: StopTaskRequest) -> Result<StopTaskResponse, Error> {
    let cluster = identifier::cluster(caller, input.cluster.as_deref())?;
    records::active_cluster(ecs, caller, &cluster).await?;
    let id = identifier::task(caller, &cluster, &input.task)?.id.ok_or_else(task_not_found)?;
    let reason =
        input.reason.filter(|reason| !reason.is_empty()).unwrap_or_else(|| "Task stopped by user".to_owned());
    if reason.chars().count() > MAX_REASON {
        return Err(invalid(format!("reason can have up to {MAX_REASON} characters.")));
    }
    let path = caller.scope().task(&cluster, &id);
    for _ in 0..records::ATTEMPTS {
        let found = records::load::<Task>(&ecs.store, &path.intent()).await?.ok_or_else(task_not_found)?;
        let mut known = task_records::complete(&ecs.store, &path, found.value).await?;
        if known.task.desired == DesiredStatus::Running && known.status() != TaskStatus::Stopped {
            let txn = ask(ecs, &path, &mut known.task, found.revision, &reason);
            if records::commit(&ecs.store, txn).await? == Outcome::Conflict {
                continue;
            }
            ecs.wake.notify_one();
        }
        return Ok(StopTaskResponse { task: Some(task_view::view(&known, &ecs.default_subnet, true)?) });
    }
    Err(contention())
}
