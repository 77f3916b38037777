//! What is reported of a task: built up from stages and the supervisor's states, never going back.

use model::observation::{ContainerObservation, Observation};
use model::sandbox::{SandboxPhase, SandboxState};
use model::status::{ContainerStatus, StopCause, StopCode, TaskStatus};
use model::{TaskId, Timestamp};

use crate::ledger::Entry;

pub(super) struct Report {
    observation: Observation,
    essential: Vec<String>,
}

impl Report {
    /// Goes on from the last observation in the ledger.
    pub(super) fn new(entry: &Entry) -> Self {
        let spec = &entry.assignment.spec;
        let observation = entry.observation.clone().unwrap_or_else(|| Observation {
            task: entry.assignment.task.clone(),
            sequence: 0,
            status: TaskStatus::Provisioning,
            times: model::observation::TaskTimes::default(),
            containers: spec.containers.iter().map(|c| ContainerObservation::pending(&c.name)).collect(),
            stop: None,
        });
        let essential = spec.containers.iter().filter(|c| c.essential).map(|c| c.name.clone()).collect();
        Self { observation, essential }
    }

    pub(super) fn observation(&self) -> &Observation {
        &self.observation
    }

    pub(super) fn task(&self) -> &TaskId {
        &self.observation.task
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.observation.status == TaskStatus::Stopped
    }

    fn change(&mut self, change: impl FnOnce(&mut Observation)) {
        let before = self.observation.clone();
        change(&mut self.observation);
        if self.observation != before {
            self.observation.sequence = before.sequence + 1;
        }
    }

    /// Moves the status on and notes the time that belongs to it.
    pub(super) fn advance(&mut self, status: TaskStatus, now: Timestamp) {
        self.change(|o| {
            if !o.status.may_become(status) || o.status == status {
                return;
            }
            o.status = status;
            let times = &mut o.times;
            match status {
                TaskStatus::Pending => {
                    times.connected_at.get_or_insert(now);
                    times.pull_started_at.get_or_insert(now);
                }
                TaskStatus::Activating => {
                    times.pull_stopped_at.get_or_insert(now);
                }
                TaskStatus::Running => {
                    times.started_at.get_or_insert(now);
                }
                TaskStatus::Stopping => {
                    times.stopping_at.get_or_insert(now);
                }
                TaskStatus::Deprovisioning => {
                    times.stopping_at.get_or_insert(now);
                    times.execution_stopped_at.get_or_insert(now);
                }
                TaskStatus::Stopped => {
                    times.stopped_at = Some(now);
                    for container in &mut o.containers {
                        container.status = ContainerStatus::Stopped;
                    }
                }
                TaskStatus::Provisioning | TaskStatus::Deactivating => {}
            }
        });
    }

    /// Notes why the task stops; the first cause stands.
    pub(super) fn stop(&mut self, cause: &StopCause) {
        self.change(|o| {
            o.stop.get_or_insert_with(|| bounded_cause(cause));
        });
    }

    pub(super) fn image(&mut self, container: &str, digest: String) {
        self.change(|o| {
            if let Some(c) = o.containers.iter_mut().find(|c| c.name == container) {
                c.image_digest = Some(digest);
            }
        });
    }

    pub(super) fn container_failed(&mut self, container: &str, reason: String) {
        self.change(|o| {
            if let Some(c) = o.containers.iter_mut().find(|c| c.name == container) {
                c.reason = Some(reason);
            }
        });
    }

    pub(super) fn take_in(&mut self, state: &SandboxState, now: Timestamp) {
        self.change(|o| {
            // A guest has a clock of its own, and may say anything.
            let earliest = o.times.connected_at.unwrap_or(Timestamp(0)).min(now);
            let possible = |at: Option<Timestamp>| at.map(|at| at.clamp(earliest, now));
            for seen in &state.containers {
                let Some(c) = o.containers.iter_mut().find(|c| c.name == seen.name) else { continue };
                c.status = seen.status;
                c.runtime_id = seen.runtime_id.as_deref().map(bounded);
                c.exit_code = seen.exit_code;
                if let Some(reason) = &seen.reason {
                    c.reason = Some(bounded(reason));
                }
                c.health = seen.health;
                c.restart_count = seen.restart_count;
                c.started_at = possible(seen.started_at);
                c.finished_at = possible(seen.finished_at);
            }
            if o.stop.is_none() {
                o.stop = state.stop.as_ref().map(bounded_cause);
            }
        });
        match state.phase {
            SandboxPhase::Idle | SandboxPhase::Starting => {}
            SandboxPhase::Running => self.advance(TaskStatus::Running, now),
            SandboxPhase::Stopping => self.advance(TaskStatus::Stopping, now),
            SandboxPhase::Ended => {
                // A task whose containers all ran to their end by themselves was RUNNING, however
                // short: started_at says so even when nobody saw it in that state.
                if self.observation.times.started_at.is_none() && self.essential_started(state) {
                    self.change(|o| {
                        o.times.started_at = o.containers.iter().filter_map(|c| c.started_at).min();
                    });
                }
                self.change(|o| {
                    let ended = o.containers.iter().filter_map(|c| c.finished_at).max();
                    o.times.execution_stopped_at = o.times.execution_stopped_at.or(ended);
                    o.stop.get_or_insert_with(|| StopCause {
                        code: StopCode::EssentialContainerExited,
                        reason: "Essential container in task exited".to_owned(),
                    });
                });
                self.advance(TaskStatus::Stopping, now);
            }
        }
    }

    fn essential_started(&self, state: &SandboxState) -> bool {
        state.containers.iter().filter(|c| self.essential.contains(&c.name)).all(|c| c.started_at.is_some())
    }

    /// The containers ended without anybody seeing how.
    pub(super) fn end_all_containers(&mut self, now: Timestamp) {
        self.change(|o| {
            for c in o.containers.iter_mut().filter(|c| c.status != ContainerStatus::Stopped) {
                if c.status == ContainerStatus::Running {
                    c.exit_code.get_or_insert(137);
                    c.finished_at.get_or_insert(now);
                }
                c.status = ContainerStatus::Stopped;
            }
        });
    }
}

/// A text of a supervisor's, which in a microVM may be the tenant's: cut to what AWS allows a reason
/// to have (`StopTask`: 1024 characters; longer ones are of no use to anybody).
fn bounded(text: &str) -> String {
    text.chars().take(1024).collect()
}

fn bounded_cause(cause: &StopCause) -> StopCause {
    StopCause { code: cause.code, reason: bounded(&cause.reason) }
}

#[cfg(test)]
mod tests {
    use model::observation::TaskTimes;
    use model::sandbox::ContainerState;
    use model::status::HealthStatus;

    use super::*;

    fn ended(started_at: i64, finished_at: i64) -> SandboxState {
        let container = ContainerState {
            name: "main".to_owned(),
            status: ContainerStatus::Stopped,
            runtime_id: None,
            pid: None,
            exit_code: Some(0),
            reason: None,
            health: HealthStatus::Unknown,
            restart_count: 0,
            started_at: Some(Timestamp(started_at)),
            finished_at: Some(Timestamp(finished_at)),
            log_end: 0,
            log_acknowledged: 0,
        };
        let phase = SandboxPhase::Ended;
        SandboxState { task: None, sequence: 1, phase, containers: vec![container], stop: None }
    }

    /// The times of a task that was connected at 1000 and of which this is heard at 2000.
    fn times(started_at: i64, finished_at: i64) -> (Option<i64>, Option<i64>) {
        let observation = Observation {
            task: TaskId::try_from("00000000000000000000000000000001".to_owned()).unwrap(),
            sequence: 0,
            status: TaskStatus::Activating,
            times: TaskTimes { connected_at: Some(Timestamp(1000)), ..TaskTimes::default() },
            containers: vec![ContainerObservation::pending("main")],
            stop: None,
        };
        let mut report = Report { observation, essential: vec!["main".to_owned()] };
        report.take_in(&ended(started_at, finished_at), Timestamp(2000));
        let times = &report.observation.times;
        (times.started_at.map(|at| at.0), times.execution_stopped_at.map(|at| at.0))
    }

    #[test]
    fn a_guest_says_when_within_its_tasks_life() {
        assert_eq!(times(1200, 1900), (Some(1200), Some(1900)));
        assert_eq!(times(0, i64::MAX), (Some(1000), Some(2000)));
        assert_eq!(times(i64::MAX, i64::MIN), (Some(2000), Some(1000)));
    }
}
