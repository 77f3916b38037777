//! From assignments in the store to deltas for the agent.

use model::status::TaskStatus;

use super::*;

impl<'a> Session<'a> {
    /// Records the host, sends its whole assignment, and follows what changes from there.
    pub(super) async fn open(
        hosts: &'a Hosts,
        host: Host,
        held: u64,
        to_agent: mpsc::UnboundedSender<ToAgent>,
    ) -> Result<(Self, store::Watch), SessionError> {
        let key = format!("{}{}", keys::HOSTS, host.id);
        let before = hosts.store.get_json::<Host>(&key).await?;
        let fresh = before.is_none_or(|before| before.value.incarnation != host.incarnation);
        let revision = hosts.store.commit(Txn::new().put_json(&key, &host)).await?;
        let changes = hosts.store.watch(keys::ASSIGNMENTS, Some(revision));
        let subnets = hosts.store.range_json::<Subnet>(Range::prefix(keys::SUBNETS)).await?;
        let mut session = Self {
            hosts,
            host: host.id,
            // The agent refuses what is not newer than what it holds, whatever the store says.
            generation: held.max(revision.0),
            tasks: HashMap::new(),
            snapshots: HashMap::new(),
            subnets: subnets.entries.into_iter().map(|(_, s)| (s.value.id.clone(), s.value)).collect(),
            to_agent,
        };
        let mut all = Vec::new();
        for (key, assignment) in
            hosts.store.range_json::<Assignment>(Range::prefix(keys::ASSIGNMENTS)).await?.entries
        {
            all.extend(session.take_in(&key, assignment.value).await?);
        }
        if fresh {
            all = session.end_lost(all).await?;
        }
        session.send(None, all, vec![])?;
        hosts.connected.notify_waiters();
        hosts.connected.notify_one();
        hosts.wake.notify_one();
        Ok((session, changes))
    }

    pub(super) async fn assignments_changed(&mut self, events: Vec<Event>) -> Result<(), SessionError> {
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::Put(kv) => {
                    let assignment = kv.json::<Assignment>()?;
                    upsert.extend(self.take_in(&kv.key, assignment).await?);
                }
                Event::Delete { key } => {
                    if let Some(path) = TaskPath::of_key(keys::ASSIGNMENTS, &key) {
                        let gone: Vec<TaskId> = self
                            .tasks
                            .iter()
                            .filter(|(_, k)| k.path == path)
                            .map(|(id, _)| id.clone())
                            .collect();
                        for task in gone {
                            self.tasks.remove(&task);
                            remove.push(task);
                        }
                    }
                }
            }
        }
        if upsert.is_empty() && remove.is_empty() {
            return Ok(());
        }
        self.send(Some(self.generation), upsert, remove)
    }

    /// What the agent shall be told of an assignment: nothing if it is another host's, or ended.
    async fn take_in(
        &mut self,
        key: &str,
        assignment: Assignment,
    ) -> Result<Option<Arc<TaskAssignment>>, SessionError> {
        let Decision::Placed { host, eni, stop } = assignment.decision else { return Ok(None) };
        let Some(path) = TaskPath::of_key(keys::ASSIGNMENTS, key) else { return Ok(None) };
        if host != self.host {
            return Ok(None);
        }
        let observed = self.hosts.store.get_json::<Observation>(&path.observation()).await?.map(|o| o.value);
        if observed.as_ref().is_some_and(|o| o.status == TaskStatus::Stopped) {
            return Ok(None);
        }
        let intent = match self.tasks.get(&assignment.task) {
            Some(known) => known.intent.clone(),
            None => match self.hosts.store.get_json::<Task>(&path.intent()).await? {
                Some(intent) => Arc::new(intent.value),
                None => return Ok(None),
            },
        };
        let Some(subnet) = self.subnets.get(&eni.subnet).cloned() else {
            tracing::error!(task = %assignment.task, subnet = %eni.subnet, "an assignment names an unknown subnet");
            return Ok(None);
        };
        let told = TaskAssignment {
            task: assignment.task.clone(),
            account: intent.account.clone(),
            region: intent.region.clone(),
            cluster: intent.cluster.clone(),
            spec: intent.spec.clone(),
            eni,
            subnet,
            registry: (self.hosts.registry)(&intent),
            stop: stop.map(|stop| stop.cause),
        };
        self.tasks.insert(assignment.task, Known { path, intent, observed });
        Ok(Some(Arc::new(told)))
    }

    pub(super) fn send(
        &mut self,
        base: Option<u64>,
        upsert: Vec<Arc<TaskAssignment>>,
        remove: Vec<TaskId>,
    ) -> Result<(), SessionError> {
        self.generation += 1;
        let delta = AssignmentDelta { base, generation: self.generation, upsert, remove };
        self.to_agent.send(ToAgent::Assign(delta)).map_err(|_| SessionError::Closed)
    }
}
