//! Host sessions: what hosts shall run goes down, what they saw comes up. They alone write
//! observations.
//!
//! A session begins with the agent's hello, answers with the host's whole assignment, and then
//! sends each change of it as a delta. Reports are stored before anything follows from them.

mod assignment;
pub(crate) mod logs;
pub mod pulls;
mod reports;
mod snapshots;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link::{AssignmentDelta, ControlEnd, RegistryAccess, TaskAssignment, ToAgent, ToControl};
use model::assignment::{Assignment, Decision};
use model::host::Host;
use model::network::Subnet;
use model::observation::Observation;
use model::task::Task;
use model::{AccountId, HostId, SubnetId, TaskId};
use store::{CommitError, Event, Range, Store, Txn};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::hosts::pulls::Pulls;
use crate::keys::{self, TaskPath};
use crate::telemetry::logs::LogStore;

/// Reports taken together into one transaction.
const REPORT_BATCH: usize = 64;
/// Log batches on their way to the log store; a full queue makes the agent wait.
const LOG_QUEUE: usize = 64;
/// Pause before a session is started anew after an error of the store: the first, and the longest of those that follow
/// one another (a full disk stays full for a while, and each try says so in the log).
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(3);

/// Makes the credentials with which a host pulls a task's images from the built-in registry.
pub type RegistryGrant = Arc<dyn Fn(&Task) -> RegistryAccess + Send + Sync>;

/// What sessions work with.
#[derive(Clone)]
pub struct Hosts {
    pub store: Store,
    pub logs: LogStore,
    pub clock: Clock,
    pub registry: RegistryGrant,
    /// Wakes the reconciler: a stopped task frees capacity.
    pub wake: Arc<Notify>,
    /// Woken when a host has said hello and its record is stored.
    pub connected: Arc<Notify>,
    /// Where sessions put what they hear of pulls.
    pub pulls: Pulls,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the agent closed the connection")]
    Closed,
    #[error("logs cannot be stored")]
    LogsFailed,
    #[error("the state cannot be read")]
    Read(#[from] store::Error),
    #[error("an observation cannot be stored")]
    Commit(#[from] CommitError),
    #[error("the changes in the state cannot be followed")]
    Watch(#[from] store::WatchError),
}

/// A task of this host whose end is not yet recorded.
struct Known {
    path: TaskPath,
    intent: Arc<Task>,
    observed: Option<Observation>,
}

struct Session<'a> {
    hosts: &'a Hosts,
    host: HostId,
    generation: u64,
    tasks: HashMap<TaskId, Known>,
    subnets: HashMap<SubnetId, Subnet>,
    snapshots: snapshots::Known,
    to_agent: mpsc::UnboundedSender<ToAgent>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Nobody says any more how far they are.
        self.hosts.pulls.over(self.tasks.keys());
    }
}

impl Hosts {
    /// Serves one agent until it goes away or `stop` becomes true. After an error of the store the
    /// agent's next hello starts anew.
    pub async fn serve(&self, mut end: ControlEnd, mut stop: watch::Receiver<bool>) {
        let mut hello = None;
        let mut pause = RETRY;
        loop {
            let began = Instant::now();
            let outcome = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                outcome = self.session(&mut end, hello.take()) => outcome,
            };
            if began.elapsed() > LONGEST_RETRY {
                pause = RETRY;
            }
            match outcome {
                Ok(again) => hello = Some(again),
                Err(SessionError::Closed) => return,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a host session ended; starting it anew"
                    );
                    tokio::select! {
                        _ = stop.wait_for(|stop| *stop) => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_RETRY);
                    if end.to_agent.send(ToAgent::SayHello).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Runs from one hello to the next.
    async fn session(
        &self,
        end: &mut ControlEnd,
        hello: Option<(Host, u64)>,
    ) -> Result<(Host, u64), SessionError> {
        let (host, held) = match hello {
            Some(hello) => hello,
            None => wait_for_hello(end).await?,
        };
        let (mut session, mut changes) = Session::open(self, host, held, end.to_agent.clone()).await?;
        // Followed from before they are read: what is seen twice is told twice.
        let mut snapshots = self.store.watch(keys::SNAPSHOTS, None);
        session.tell_snapshots().await?;
        let (log_queue, log_work) = mpsc::channel(LOG_QUEUE);
        // A task of its own, which ends with the session: it must go on while the session waits for
        // room in its queue.
        let mut storing = JoinSet::new();
        storing.spawn(logs::store_batches(self.logs.clone(), end.to_agent.clone(), log_work));
        loop {
            tokio::select! {
                _ = storing.join_next() => return Err(SessionError::LogsFailed),
                changed = snapshots.next() => {
                    changed?;
                    session.tell_snapshots().await?;
                }
                batch = changes.next() => session.assignments_changed(batch?.events).await?,
                message = end.from_agent.recv() => match message.ok_or(SessionError::Closed)? {
                    ToControl::Hello { host, generation } => return Ok((host, generation)),
                    ToControl::Report { observation } => {
                        let mut batch = vec![observation];
                        let next = loop {
                            match end.from_agent.try_recv() {
                                Ok(ToControl::Report { observation }) if batch.len() < REPORT_BATCH => batch.push(observation),
                                Ok(other) => break Some(other),
                                Err(_) => break None,
                            }
                        };
                        session.reported(batch).await?;
                        match next {
                            None => {}
                            Some(ToControl::Hello { host, generation }) => return Ok((host, generation)),
                            Some(ToControl::Report { observation }) => session.reported(vec![observation]).await?,
                            Some(ToControl::Logs { task, batch }) => session.logged(&log_queue, task, batch).await,
                            Some(ToControl::Pulling { task, container, progress }) => session.pulling(task, container, progress),
                            Some(ToControl::Snapshot { report }) => session.snapshot_reported(report).await?,
                        }
                    }
                    ToControl::Logs { task, batch } => session.logged(&log_queue, task, batch).await,
                    ToControl::Pulling { task, container, progress } => session.pulling(task, container, progress),
                    ToControl::Snapshot { report } => session.snapshot_reported(report).await?,
                },
            }
        }
    }
}

async fn wait_for_hello(end: &mut ControlEnd) -> Result<(Host, u64), SessionError> {
    loop {
        match end.from_agent.recv().await.ok_or(SessionError::Closed)? {
            ToControl::Hello { host, generation } => return Ok((host, generation)),
            // Of the session that broke: the agent says it again after its hello.
            ToControl::Report { .. }
            | ToControl::Logs { .. }
            | ToControl::Pulling { .. }
            | ToControl::Snapshot { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
