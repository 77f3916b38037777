//! What is in use on each host and in each subnet, kept up from the store so that a pass does not
//! read the world: loaded once, then by what the reconciler itself commits and by watching which
//! tasks stop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use model::assignment::{Assignment, Decision};
use model::host::Resources;
use model::network::{Eni, Subnet};
use model::observation::Observation;
use model::status::TaskStatus;
use model::task::Task;
use model::{HostId, SubnetId, TaskId, Timestamp};
use plan::AddressPool;
use store::{Event, Range, Store, Watch};

use super::ReconcileError;
use crate::keys::{self, TaskPath};

struct Placed {
    host: HostId,
    eni: Eni,
    resources: Resources,
}

pub(super) struct Capacity {
    placed: HashMap<TaskId, Placed>,
    used: BTreeMap<HostId, Resources>,
    pools: BTreeMap<SubnetId, AddressPool>,
    /// Stopped tasks by the time they stopped.
    ended: BTreeSet<(Timestamp, TaskId)>,
    ended_at: HashMap<TaskId, (Timestamp, TaskPath)>,
    changes: Watch,
}

impl Capacity {
    pub(super) async fn load(store: &Store) -> Result<Self, ReconcileError> {
        let subnets = store.range_json::<Subnet>(Range::prefix(keys::SUBNETS)).await?;
        // Followed from before the reads: an event that a read has seen already changes nothing.
        let changes = store.watch(keys::ECS, Some(subnets.revision));
        let mut capacity = Self {
            placed: HashMap::new(),
            used: BTreeMap::new(),
            pools: subnets
                .entries
                .into_iter()
                .map(|(_, s)| (s.value.id.clone(), AddressPool::new(s.value)))
                .collect(),
            ended: BTreeSet::new(),
            ended_at: HashMap::new(),
            changes,
        };
        for (key, assignment) in
            store.range_json::<Assignment>(Range::prefix(keys::ASSIGNMENTS)).await?.entries
        {
            let Some(path) = TaskPath::of_key(keys::ASSIGNMENTS, &key) else { continue };
            let Some(task) = store.get_json::<Task>(&path.intent()).await? else { continue };
            capacity.assigned(&path, &task.value, &assignment.value);
        }
        for (key, observation) in
            store.range_json::<Observation>(Range::prefix(keys::OBSERVATIONS)).await?.entries
        {
            if let Some(path) = TaskPath::of_key(keys::OBSERVATIONS, &key) {
                capacity.observed(path, &observation.value);
            }
        }
        Ok(capacity)
    }

    /// Takes in what hosts reported, and what was deleted, since the last pass.
    pub(super) async fn catch_up(&mut self) -> Result<(), ReconcileError> {
        // A watch has no non-blocking read; an elapsed timeout means that nothing is waiting.
        while let Ok(batch) = tokio::time::timeout(Duration::ZERO, self.changes.next()).await {
            for event in batch?.events {
                match event {
                    Event::Put(kv) => {
                        if let Some(path) = TaskPath::of_key(keys::OBSERVATIONS, &kv.key) {
                            self.observed(path, &kv.json::<Observation>()?);
                        }
                    }
                    Event::Delete { key } => {
                        let task = TaskPath::of_key(keys::ASSIGNMENTS, &key).and_then(|path| path.task());
                        if let Some(task) = task {
                            self.free(&task);
                            self.forgotten(&task);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn assigned(&mut self, path: &TaskPath, task: &Task, assignment: &Assignment) {
        match &assignment.decision {
            Decision::Placed { host, eni, .. } => {
                let resources = task.spec.resources();
                let placed = Placed { host: host.clone(), eni: eni.clone(), resources };
                if self.placed.insert(task.id.clone(), placed).is_none() {
                    let used = self.used.entry(host.clone()).or_default();
                    *used = used.plus(resources);
                    if let Some(pool) = self.pools.get_mut(&eni.subnet) {
                        pool.take(eni.address);
                    }
                }
            }
            Decision::Refused { .. } => self.end(path.clone(), &task.id, assignment.decided_at),
        }
    }

    fn observed(&mut self, path: TaskPath, observation: &Observation) {
        if observation.status != TaskStatus::Stopped {
            return;
        }
        self.free(&observation.task);
        self.end(path, &observation.task, observation.times.stopped_at.unwrap_or_default());
    }

    fn free(&mut self, task: &TaskId) {
        if let Some(placed) = self.placed.remove(task) {
            let used = self.used.entry(placed.host).or_default();
            *used = used.minus(placed.resources);
            if let Some(pool) = self.pools.get_mut(&placed.eni.subnet) {
                pool.release(placed.eni.address);
            }
        }
    }

    fn end(&mut self, path: TaskPath, task: &TaskId, at: Timestamp) {
        if self.ended_at.insert(task.clone(), (at, path)).is_none() {
            self.ended.insert((at, task.clone()));
        }
    }

    pub(super) fn used_on(&self, host: &HostId) -> Resources {
        self.used.get(host).copied().unwrap_or_default()
    }

    pub(super) fn subnets(&self) -> &BTreeMap<SubnetId, AddressPool> {
        &self.pools
    }

    /// The `most` tasks that stopped first.
    pub(super) fn ended_before(&self, now: Timestamp, most: usize) -> Vec<(TaskId, Timestamp)> {
        self.ended
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(most)
            .map(|(at, id)| (id.clone(), *at))
            .collect()
    }

    pub(super) fn path_of_ended(&self, task: &TaskId) -> Option<&TaskPath> {
        self.ended_at.get(task).map(|(_, path)| path)
    }

    pub(super) fn forgotten(&mut self, task: &TaskId) {
        if let Some((at, _)) = self.ended_at.remove(task) {
            self.ended.remove(&(at, task.clone()));
        }
    }
}
