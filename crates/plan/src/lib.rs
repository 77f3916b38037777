//! The planner: a pure function from what is wanted and what there is to what shall be done.
//!
//! No I/O, no clock, no randomness of its own: the same view, time and ids give the same plan. The
//! view holds the tasks whose intent changed and the capacity they may use, not the world, so the
//! cost of a plan follows the change.
//!
//! - [`placement`]: which host runs a task;
//! - [`addresses`]: which address its network interface gets;
//! - [`ending`]: how tasks stop, and when they are forgotten.

pub mod addresses;
pub mod ending;
pub mod placement;

use std::collections::BTreeMap;

use model::assignment::{Assignment, Decision};
use model::status::{DesiredStatus, StopCause, TaskStatus};
use model::task::Task;
use model::{EniId, SubnetId, TaskId, Timestamp};

pub use addresses::AddressPool;
pub use placement::HostView;

/// What a plan is made from.
#[derive(Debug)]
pub struct View<'a> {
    /// Tasks whose intent changed since it was last planned for.
    pub tasks: Vec<PendingTask>,
    /// Stopped tasks that may be old enough to be forgotten, and when they stopped.
    pub ended: Vec<(TaskId, Timestamp)>,
    pub hosts: Vec<HostView>,
    pub subnets: &'a BTreeMap<SubnetId, AddressPool>,
}

/// A task whose intent changed.
#[derive(Clone, Debug)]
pub struct PendingTask {
    pub intent: Task,
    pub assignment: Option<Assignment>,
    /// `lastStatus` as the host last saw it.
    pub observed: Option<TaskStatus>,
    /// A fact that keeps the task from starting, such as a log group that does not exist.
    pub obstacle: Option<StopCause>,
}

/// What shall be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// New or changed assignments.
    pub assignments: Vec<Assignment>,
    /// Stopped tasks whose records shall be deleted.
    pub forget: Vec<TaskId>,
}

/// Makes a plan. `ids` yields random bits for new network interface ids; a plan takes at most one
/// per task.
pub fn plan(view: &View<'_>, now: Timestamp, ids: &mut dyn Iterator<Item = u128>) -> Plan {
    let mut hosts = placement::Hosts::new(&view.hosts);
    let mut addresses = addresses::Picker::new(view.subnets);
    let mut assignments = Vec::new();
    for task in &view.tasks {
        let decision = match (&task.assignment, task.intent.desired) {
            (None, DesiredStatus::Running) => Some(start(task, &mut hosts, &mut addresses, ids)),
            (None, DesiredStatus::Stopped) => {
                Some(Decision::Refused { cause: ending::requested(&task.intent) })
            }
            (Some(assignment), DesiredStatus::Stopped) => ending::stop(task, assignment, now),
            (Some(_), DesiredStatus::Running) => None,
        };
        if let Some(decision) = decision {
            assignments.push(Assignment { task: task.intent.id.clone(), decided_at: now, decision });
        }
    }
    Plan { assignments, forget: ending::expired(&view.ended, now) }
}

fn start(
    task: &PendingTask,
    hosts: &mut placement::Hosts,
    addresses: &mut addresses::Picker<'_>,
    ids: &mut dyn Iterator<Item = u128>,
) -> Decision {
    if let Some(cause) = &task.obstacle {
        return Decision::Refused { cause: cause.clone() };
    }
    let Some(id) = ids.next() else {
        return Decision::Refused { cause: ending::failed_to_start("No network interface id is left.") };
    };
    let Some(host) = hosts.choose(&task.intent.spec) else {
        return Decision::Refused { cause: ending::failed_to_start(&hosts.refusal(&task.intent.spec)) };
    };
    let Some(eni) = addresses.pick(&task.intent, EniId::from_random(id)) else {
        return Decision::Refused { cause: ending::failed_to_start(addresses::NO_ADDRESS) };
    };
    hosts.take(&host, &task.intent.spec);
    Decision::Placed { host, eni, stop: None }
}

#[cfg(test)]
mod tests;
