//! How far pulls are: heard from hosts, kept in memory, gone with the session or the pull. Nothing follows from it;
//! it is for people who watch (`coracle run`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use link::PullProgress;
use model::TaskId;

use crate::keys::{Scope, TaskPath};

/// The pulls under way on all hosts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pulls(Arc<Mutex<HashMap<TaskId, TaskPulls>>>);

struct TaskPulls {
    path: TaskPath,
    containers: BTreeMap<String, PullProgress>,
}

impl Pulls {
    /// How far the pulls of a task are, by container; empty when none is known to be under way. `may_see` is asked
    /// whether the task, of this scope, is the caller's.
    #[must_use]
    pub fn of(&self, task: &TaskId, may_see: impl FnOnce(&Scope) -> bool) -> BTreeMap<String, PullProgress> {
        let pulls = self.lock();
        let seen = pulls.get(task).filter(|pulls| pulls.path.scope().is_some_and(|scope| may_see(&scope)));
        seen.map(|pulls| pulls.containers.clone()).unwrap_or_default()
    }

    pub(super) fn heard(&self, task: TaskId, path: &TaskPath, container: String, progress: PullProgress) {
        let new = || TaskPulls { path: path.clone(), containers: BTreeMap::new() };
        self.lock().entry(task).or_insert_with(new).containers.insert(container, progress);
    }

    pub(super) fn over<'a>(&self, tasks: impl IntoIterator<Item = &'a TaskId>) {
        let mut pulls = self.lock();
        for task in tasks {
            pulls.remove(task);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, TaskPulls>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
