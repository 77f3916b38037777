//! The reconciler: view → [`plan::plan`] → commit. It alone writes assignments.
//!
//! It takes no input, only a wake-up and a period, so normal operation and recovery after a crash
//! are one path: whatever intent is in the store and not yet planned for is planned for now. A plan
//! is committed under a version check; when something else changed meanwhile, it is made anew.

mod capacity;

use std::sync::Arc;
use std::time::Duration;

use capacity::Capacity;
use model::Region;
use model::assignment::Assignment;
use model::host::Host;
use model::observation::Observation;
use model::spec::LogSpec;
use model::status::{StopCause, StopCode};
use model::task::Task;
use plan::{HostView, PendingTask, View};
use store::{CommitError, Range, Revision, Store, Txn};
use tokio::sync::{Notify, watch};

use crate::clock::Clock;
use crate::hosts::logs::cursor_source;
use crate::keys::{self, Scope, TaskPath};
use crate::telemetry::logs::{LogError, LogStore};

/// How often it looks without being woken: the bound on how late an expiry is seen.
const PERIOD: Duration = Duration::from_secs(5);
/// Tasks planned for at once; the rest follow in the next pass.
const BATCH: usize = 200;
/// What a commit may hold stays well below the store's bound on operations.
const FORGET_BATCH: usize = 100;

/// The reconciler's parts; [`Reconciler::run`] is its life.
pub struct Reconciler {
    pub store: Store,
    pub logs: LogStore,
    pub clock: Clock,
    pub wake: Arc<Notify>,
}

/// Why a pass failed. The next one starts from the store again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("the state cannot be read")]
    Read(#[from] store::Error),
    #[error("the plan cannot be committed")]
    Commit(#[from] CommitError),
    #[error("the changes in the state cannot be followed")]
    Watch(#[from] store::WatchError),
}

struct Pending {
    path: TaskPath,
    entry: Revision,
    assignment: Option<Revision>,
}

impl Reconciler {
    /// Reconciles until `stop` becomes true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut capacity = None;
        loop {
            let outcome = self.pass(&mut capacity).await;
            let more = match outcome {
                Ok(more) => more,
                Err(ReconcileError::Commit(CommitError::Conflict { .. })) => true,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a reconcile pass failed");
                    capacity = None;
                    false
                }
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.wake.notified(), if !more => {}
                () = tokio::time::sleep(PERIOD), if !more => {}
                () = tokio::task::yield_now(), if more => {}
            }
        }
    }

    /// One pass; says whether there is more to do at once.
    async fn pass(&self, held: &mut Option<Capacity>) -> Result<bool, ReconcileError> {
        let mut capacity = match held.take() {
            Some(capacity) => capacity,
            None => Capacity::load(&self.store).await?,
        };
        capacity.catch_up().await?;

        let found = self.store.range(Range::prefix(keys::PENDING).limit(BATCH)).await?;
        let mut pending = Vec::with_capacity(found.kvs.len());
        let mut tasks = Vec::with_capacity(found.kvs.len());
        for kv in &found.kvs {
            if let Some(path) = TaskPath::of_key(keys::PENDING, &kv.key)
                && let Some((guard, task)) = self.look_at(path, kv.mod_revision).await?
            {
                pending.push(guard);
                tasks.push(task);
            }
        }
        let hosts = self.hosts(&capacity).await?;
        let now = self.clock.now();
        let ended = capacity.ended_before(now, FORGET_BATCH);
        let view = View { tasks, ended, hosts, subnets: capacity.subnets() };
        let plan = plan::plan(&view, now, &mut std::iter::repeat_with(rand::random));

        let intents: Vec<Task> = view.tasks.into_iter().map(|task| task.intent).collect();
        self.commit(&pending, &intents, &plan, &mut capacity).await?;
        *held = Some(capacity);
        Ok(found.more)
    }

    async fn look_at(
        &self,
        path: TaskPath,
        entry: Revision,
    ) -> Result<Option<(Pending, PendingTask)>, ReconcileError> {
        let Some(intent) = self.store.get_json::<Task>(&path.intent()).await? else {
            return Ok(None);
        };
        let assignment = self.store.get_json::<Assignment>(&path.assignment()).await?;
        let observed = self.store.get_json::<Observation>(&path.observation()).await?;
        let obstacle = match &assignment {
            None => self.obstacle(&intent.value).await,
            Some(_) => None,
        };
        let guard = Pending { path, entry, assignment: assignment.as_ref().map(|a| a.revision) };
        let task = PendingTask {
            intent: intent.value,
            assignment: assignment.map(|a| a.value),
            observed: observed.map(|o| o.value.status),
            obstacle,
        };
        Ok(Some((guard, task)))
    }

    /// Fargate refuses a task whose log group does not exist and shall not be created.
    async fn obstacle(&self, task: &Task) -> Option<StopCause> {
        for log in task.spec.containers.iter().filter_map(|c| c.log.as_ref()) {
            if !log.create_group && !self.has_log_group(task, log).await {
                let reason = "ResourceInitializationError: failed to validate logger args: create stream has \
                    been retried 1 times: failed to create Cloudwatch log stream: ResourceNotFoundException: \
                    The specified log group does not exist. : exit status 1";
                return Some(StopCause { code: StopCode::TaskFailedToStart, reason: reason.to_owned() });
            }
        }
        None
    }

    async fn has_log_group(&self, task: &Task, log: &LogSpec) -> bool {
        let Ok(region) = Region::parse(log.region.as_str()) else { return false };
        let scope = Scope { account: task.account.clone(), region };
        !matches!(self.logs.group(&scope, &log.group).await, Err(LogError::GroupNotFound))
    }

    async fn hosts(&self, capacity: &Capacity) -> Result<Vec<HostView>, ReconcileError> {
        let hosts = self.store.range_json::<Host>(Range::prefix(keys::HOSTS)).await?;
        let view = |host: Host| HostView { used: capacity.used_on(&host.id), host };
        Ok(hosts.entries.into_iter().map(|(_, host)| view(host.value)).collect())
    }

    async fn commit(
        &self,
        pending: &[Pending],
        intents: &[Task],
        plan: &plan::Plan,
        capacity: &mut Capacity,
    ) -> Result<(), ReconcileError> {
        let mut txn = Txn::new();
        for guard in pending {
            txn = txn.expect_revision(guard.path.pending(), guard.entry).delete(guard.path.pending());
        }
        let mut made = Vec::with_capacity(plan.assignments.len());
        for assignment in &plan.assignments {
            let Some(at) = intents.iter().position(|task| task.id == assignment.task) else { continue };
            let key = pending[at].path.assignment();
            txn = match pending[at].assignment {
                Some(revision) => txn.expect_revision(&key, revision),
                None => txn.expect_absent(&key),
            };
            txn = txn.put_json(&key, assignment);
            made.push((&pending[at].path, &intents[at], assignment));
        }
        let mut log_sources = Vec::new();
        for path in plan.forget.iter().filter_map(|task| capacity.path_of_ended(task)) {
            if let Some(task) = self.store.get_json::<Task>(&path.intent()).await? {
                let logged = task.value.spec.containers.iter().filter(|container| container.log.is_some());
                log_sources.extend(logged.map(|container| cursor_source(&task.value.id, &container.name)));
            }
            txn = txn.delete(path.intent()).delete(path.assignment()).delete(path.observation());
        }
        if txn.is_empty() {
            return Ok(());
        }
        self.store.commit(txn).await?;
        for (path, task, assignment) in made {
            capacity.assigned(path, task, assignment);
        }
        for task in &plan.forget {
            capacity.forgotten(task);
        }
        // After the tasks: what a host still sends of an unknown task is refused, so no record can
        // come a second time. What stays after a failure is swept up later.
        if !log_sources.is_empty()
            && let Err(error) = self.logs.forget_cursors(&log_sources).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "cursors of ended tasks stay");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
