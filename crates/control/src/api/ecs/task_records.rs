//! The three records of a task: intent, assignment, observation.

use std::collections::HashSet;

use aws_api::Error;
use model::assignment::{Assignment, Decision};
use model::observation::Observation;
use model::status::{DesiredStatus, StopCause};
use model::task::Task;
use model::{ClusterName, TaskStatus, Timestamp};
use serde::Deserialize;
use store::Store;

use super::records;
use crate::keys::{Scope, TaskPath};

/// What is known of a task.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TaskRecords {
    pub task: Task,
    pub assignment: Option<Assignment>,
    pub observation: Option<Observation>,
}

impl TaskRecords {
    pub fn status(&self) -> TaskStatus {
        match (&self.observation, self.refused()) {
            (_, Some(_)) => TaskStatus::Stopped,
            (Some(observation), None) => observation.status,
            (None, None) => TaskStatus::Provisioning,
        }
    }

    /// STOPPED as soon as the task is to end, whoever decided so.
    pub fn desired(&self) -> DesiredStatus {
        match self.stop() {
            Some(_) => DesiredStatus::Stopped,
            None => self.task.desired,
        }
    }

    /// Why the task ends: as the host that ran it saw it, else as it was decided, else as it was asked
    /// for.
    pub fn stop(&self) -> Option<&StopCause> {
        let observed = self.observation.as_ref().and_then(|o| o.stop.as_ref());
        let asked = self.task.stop.as_ref().map(|stop| &stop.cause);
        self.refused()
            .map(|(cause, _)| cause)
            .or(observed)
            .or(self.decided().map(|(cause, _)| cause))
            .or(asked)
    }

    /// When the task was told to end, or its end was seen if that was earlier: the host sees it stop
    /// later than it was asked to, and a time that was once said does not change.
    pub fn stopping_at(&self) -> Option<Timestamp> {
        let observed = self.observation.as_ref().and_then(|o| o.times.stopping_at);
        let asked = self.task.stop.as_ref().map(|stop| stop.at);
        let decided = self.decided().map(|(_, at)| at);
        let first = [observed, decided, asked].into_iter().flatten().min();
        self.refused().map(|(_, at)| at).or(first)
    }

    pub fn refused(&self) -> Option<(&StopCause, Timestamp)> {
        let assignment = self.assignment.as_ref()?;
        match &assignment.decision {
            Decision::Refused { cause } => Some((cause, assignment.decided_at)),
            Decision::Placed { .. } => None,
        }
    }

    fn decided(&self) -> Option<(&StopCause, Timestamp)> {
        match &self.assignment.as_ref()?.decision {
            Decision::Placed { stop: Some(stop), .. } => Some((&stop.cause, stop.at)),
            Decision::Placed { stop: None, .. } | Decision::Refused { .. } => None,
        }
    }
}

/// What is known of the task at `path`; `None` without an intent.
pub(super) async fn load(store: &Store, path: &TaskPath) -> Result<Option<TaskRecords>, Error> {
    let Some(task) = records::load::<Task>(store, &path.intent()).await? else { return Ok(None) };
    complete(store, path, task.value).await.map(Some)
}

/// Adds to an intent what reconciler and hosts wrote.
pub(super) async fn complete(store: &Store, path: &TaskPath, task: Task) -> Result<TaskRecords, Error> {
    let assignment = records::load(store, &path.assignment()).await?.map(|found| found.value);
    let observation = records::load(store, &path.observation()).await?.map(|found| found.value);
    Ok(TaskRecords { task, assignment, observation })
}

/// The capacity providers that a cluster's tasks came by and that have not stopped.
pub(super) async fn providers_in_use(
    store: &Store,
    scope: &Scope,
    cluster: &ClusterName,
) -> Result<HashSet<String>, Error> {
    /// The part of an intent that is looked at.
    #[derive(Deserialize)]
    struct Provider {
        capacity_provider: Option<String>,
    }
    let mut used = HashSet::new();
    for (key, intent) in records::all::<Provider>(store, &scope.cluster_tasks(cluster)).await? {
        let Some(provider) = intent.value.capacity_provider.filter(|name| !used.contains(name)) else {
            continue;
        };
        let Some(path) = TaskPath::of_key(crate::keys::TASKS, &key) else { continue };
        let stopped = load(store, &path).await?.is_none_or(|task| task.status() == TaskStatus::Stopped);
        if !stopped {
            used.insert(provider);
        }
    }
    Ok(used)
}
