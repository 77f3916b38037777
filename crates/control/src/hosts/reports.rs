//! From an agent's reports to observations in the store.

use link::PullProgress;
use model::status::{StopCause, StopCode, TaskStatus};

use super::*;

impl Session<'_> {
    /// Stores observations, the last of each task, and lets the agent forget the tasks that ended.
    pub(super) async fn reported(&mut self, observations: Vec<Observation>) -> Result<(), SessionError> {
        let mut latest: HashMap<TaskId, Observation> = HashMap::new();
        for observation in observations {
            latest.insert(observation.task.clone(), observation);
        }
        let mut txn = Txn::new();
        let mut ended = Vec::new();
        for (task, observation) in latest {
            let Some(known) = self.tasks.get_mut(&task) else {
                // Its end is recorded already (the agent did not hear it), or it was forgotten.
                ended.push(task);
                continue;
            };
            let news = known.observed.as_ref().is_none_or(|before| {
                observation.sequence > before.sequence && before.status.may_become(observation.status)
            });
            if news {
                // The intent is there as long as its observation may be written: a forgotten task
                // does not come back.
                txn = txn.expect_exists(known.path.intent()).put_json(known.path.observation(), &observation);
                if observation.status > TaskStatus::Pending {
                    self.hosts.pulls.over([&task]);
                }
                known.observed = Some(observation);
            }
            if known.observed.as_ref().is_some_and(|o| o.status == TaskStatus::Stopped) {
                ended.push(task);
            }
        }
        if !txn.is_empty() {
            match self.hosts.store.commit(txn).await {
                Ok(_) => {}
                Err(error) => {
                    // What this session believes to be stored is not: read it anew.
                    return Err(error.into());
                }
            }
        }
        if ended.is_empty() {
            return Ok(());
        }
        for task in &ended {
            self.tasks.remove(task);
        }
        self.send(Some(self.generation), vec![], ended)?;
        self.hosts.wake.notify_one();
        Ok(())
    }

    /// Keeps in mind how far a pull is, if the task is one of this host's.
    pub(super) fn pulling(&self, task: TaskId, container: String, progress: PullProgress) {
        let Some(known) = self.tasks.get(&task) else { return };
        let pulls = known.observed.as_ref().is_none_or(|o| o.status <= TaskStatus::Pending);
        if pulls && known.intent.spec.containers.iter().any(|c| c.name == container) {
            self.hosts.pulls.heard(task, &known.path, container, progress);
        }
    }

    /// The host has lost what it ran (it was restarted, or its state is new): tasks that were
    /// observed there have ended and must not be started a second time. Returns the others.
    pub(super) async fn end_lost(
        &mut self,
        all: Vec<Arc<TaskAssignment>>,
    ) -> Result<Vec<Arc<TaskAssignment>>, SessionError> {
        let now = self.hosts.clock.now();
        let mut txn = Txn::new();
        let mut keep = Vec::new();
        for told in all {
            let Some(known) = self.tasks.get(&told.task) else { continue };
            let Some(mut observation) = known.observed.clone() else {
                keep.push(told);
                continue;
            };
            observation.sequence += 1;
            observation.status = TaskStatus::Stopped;
            observation.times.stopping_at.get_or_insert(now);
            observation.times.execution_stopped_at.get_or_insert(now);
            observation.times.stopped_at = Some(now);
            observation.stop.get_or_insert_with(|| StopCause {
                code: StopCode::TaskFailedToStart,
                reason: "The host that ran the task was restarted.".to_owned(),
            });
            for container in &mut observation.containers {
                container.status = model::status::ContainerStatus::Stopped;
            }
            txn = txn.put_json(known.path.observation(), &observation);
            self.tasks.remove(&told.task);
        }
        if !txn.is_empty() {
            self.hosts.store.commit(txn).await?;
        }
        Ok(keep)
    }
}
