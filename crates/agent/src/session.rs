//! The agent's side of its session with control: hello, deltas in, reports and logs out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use link::{
    AgentEnd, AssignmentDelta, DeltaError, PullProgress, SnapshotOrder, TaskAssignment, ToAgent, ToControl,
};
use model::observation::Observation;
use model::sandbox::LogBatch;
use model::snapshot::SnapshotReport;
use model::{SnapshotId, TaskId};
use tokio::sync::{mpsc, watch};

use crate::Host;
use crate::ledger::{Entry, LedgerError};
use crate::task::{Command, TaskDriver};

/// Commands that wait for a task; it takes them promptly, so this is only slack.
const COMMAND_QUEUE: usize = 256;

/// The way up to control, shared by all tasks.
#[derive(Clone)]
pub struct Uplink(mpsc::Sender<ToControl>);

impl Uplink {
    /// Waits while control is behind. When control is gone the message is dropped: everything is
    /// said again in the next session.
    pub async fn report(&self, observation: Observation) {
        drop(self.0.send(ToControl::Report { observation }).await);
    }

    /// As [`Uplink::report`].
    pub async fn logs(&self, task: &TaskId, batch: LogBatch) {
        drop(self.0.send(ToControl::Logs { task: task.clone(), batch }).await);
    }

    /// As [`Uplink::report`].
    pub async fn snapshot(&self, report: SnapshotReport) {
        drop(self.0.send(ToControl::Snapshot { report }).await);
    }

    /// Never waits: while control is behind, there are things that matter more.
    pub fn pulling(&self, task: &TaskId, container: &str, progress: PullProgress) {
        if self.0.capacity() > self.0.max_capacity() / 2 {
            let (task, container) = (task.clone(), container.to_owned());
            drop(self.0.try_send(ToControl::Pulling { task, container, progress }));
        }
    }
}

/// The tasks of this host and the session they are reported in.
pub struct Session {
    host: Arc<Host>,
    uplink: Uplink,
    tasks: HashMap<TaskId, mpsc::Sender<Command>>,
    generation: u64,
}

impl Session {
    /// Takes up the tasks of the ledger.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn open(
        host: Arc<Host>,
        to_control: mpsc::Sender<ToControl>,
        entries: Vec<Entry>,
    ) -> Result<Self, LedgerError> {
        let generation = host.ledger.generation()?;
        let mut session = Self { host, uplink: Uplink(to_control), tasks: HashMap::new(), generation };
        for entry in entries {
            session.drive(entry);
        }
        Ok(session)
    }

    /// Serves until control closes the session or `stop` becomes true. Tasks go on running.
    pub async fn run(
        mut self,
        mut from_control: mpsc::UnboundedReceiver<ToAgent>,
        mut stop: watch::Receiver<bool>,
    ) {
        self.hello().await;
        loop {
            let message = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                message = from_control.recv() => message,
            };
            match message {
                None => return,
                Some(ToAgent::SayHello) => {
                    self.hello().await;
                    for commands in self.tasks.values() {
                        drop(commands.send(Command::Repeat).await);
                    }
                }
                Some(ToAgent::LogsStored { task, container, upto }) => {
                    self.logs_stored(&task, container, upto).await
                }
                Some(ToAgent::LogsRefused { task, container, upto, reason }) => {
                    tracing::warn!(%task, container, reason, "control refuses log records");
                    self.logs_stored(&task, container, upto).await;
                }
                Some(ToAgent::Snapshots { wanted }) => self.snapshots(wanted).await,
                Some(ToAgent::Assign(delta)) => {
                    if let Err(error) = delta.check(self.generation) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "an assignment cannot be applied"
                        );
                        if matches!(error, DeltaError::OtherBase { .. }) {
                            self.hello().await;
                        }
                        continue;
                    }
                    self.apply(delta).await;
                }
            }
        }
    }

    async fn hello(&self) {
        let hello = ToControl::Hello { host: self.host.describe(), generation: self.generation };
        drop(self.uplink.0.send(hello).await);
    }

    async fn logs_stored(&self, task: &TaskId, container: String, upto: u64) {
        if let Some(commands) = self.tasks.get(task) {
            drop(commands.send(Command::LogsStored { container, upto }).await);
        }
    }

    /// Makes the snapshots that are not there yet, says what became of the others, and removes those
    /// that nobody wants.
    async fn snapshots(&self, wanted: Vec<SnapshotOrder>) {
        let snapshots = self.host.snapshots.clone();
        let keep: BTreeSet<SnapshotId> = wanted.iter().map(|order| order.id.clone()).collect();
        let known = tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshots.keep_only(&keep) {
                tracing::error!(error = &error as &dyn std::error::Error, "a snapshot cannot be removed");
            }
            let look = |order: SnapshotOrder| {
                let found = snapshots.describe(&order.id);
                (!snapshots.is_being_made(&order.id)).then_some((order, found))
            };
            wanted.into_iter().filter_map(look).collect::<Vec<_>>()
        });
        for (order, found) in known.await.unwrap_or_default() {
            let SnapshotOrder { id, task } = order;
            match found {
                Ok(Some(description)) => self.uplink.snapshot(description.report()).await,
                Ok(None) => match self.tasks.get(&task) {
                    Some(commands) => drop(commands.send(Command::Snapshot(id)).await),
                    None => {
                        let reason = "the host has neither the snapshot nor the task (any more)";
                        self.uplink.snapshot(SnapshotReport::failed(id, reason)).await;
                    }
                },
                Err(error) => self.uplink.snapshot(SnapshotReport::failed(id, error.to_string())).await,
            }
        }
    }

    async fn apply(&mut self, delta: AssignmentDelta) {
        let mut remove = delta.remove;
        if delta.base.is_none() {
            // The whole: what it does not name has ended or was never ours.
            let named: std::collections::HashSet<&TaskId> =
                delta.upsert.iter().map(|told| &told.task).collect();
            remove.extend(self.tasks.keys().filter(|task| !named.contains(task)).cloned());
        }
        for told in delta.upsert {
            self.assign(told).await;
        }
        for task in remove {
            self.forget(&task).await;
        }
        self.generation = delta.generation;
        if let Err(error) = self.host.ledger.set_generation(delta.generation) {
            // A restarted agent then holds an older generation and is told the whole anew.
            tracing::error!(error = &error as &dyn std::error::Error, "the generation cannot be recorded");
        }
    }

    async fn assign(&mut self, told: Arc<TaskAssignment>) {
        if let Some(commands) = self.tasks.get(&told.task) {
            if let Some(cause) = told.stop.clone() {
                drop(commands.send(Command::Stop(cause)).await);
            }
            return;
        }
        let entry = Entry {
            assignment: told,
            slot: None,
            unused: false,
            machine: None,
            link: None,
            observation: None,
        };
        if let Err(error) = self.host.ledger.put(&entry) {
            // Not recorded, so not started: control tells again at the next hello.
            tracing::error!(error = &error as &dyn std::error::Error, "an assignment cannot be recorded");
            return;
        }
        self.drive(entry);
    }

    fn drive(&mut self, entry: Entry) {
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
        self.tasks.insert(entry.assignment.task.clone(), sender);
        tokio::spawn(TaskDriver::new(self.host.clone(), entry, commands, self.uplink.clone()).run());
    }

    /// Control has recorded the task's end, or does not know the task. The driver takes it off the
    /// host if need be, and out of the ledger.
    async fn forget(&mut self, task: &TaskId) {
        if let Some(commands) = self.tasks.remove(task) {
            drop(commands.send(Command::Forget).await);
        }
    }
}

/// Both directions of a session, taken apart for [`Session`].
#[must_use]
pub fn split(end: AgentEnd) -> (mpsc::Sender<ToControl>, mpsc::UnboundedReceiver<ToAgent>) {
    (end.to_control, end.from_control)
}
