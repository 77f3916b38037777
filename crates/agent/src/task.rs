//! One task on this host, from assignment to end.
//!
//! ```text
//! Accepted ──▶ Networked ──▶ Pulled ──▶ Booted ──▶ Running ──▶ Ended
//!     │            │            │           │          │          │
//!     └────────────┴────────────┴───────────┴──────────┴──▶ clean up ──▶ Stopped
//! ```
//! What a stage acquires is in the ledger before the next one uses it, so cleaning up, after a
//! failure, an end or a crash of the agent, is one idempotent path over the ledger's entry.

mod boot;
mod report;
mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use model::sandbox::{FromSupervisor, LogBatch, SandboxPhase, SandboxState, ToSupervisor};
use model::spec::Isolation;
use model::status::{StopCause, StopCode, TaskStatus};
use model::{SnapshotId, Timestamp};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Host;
use crate::ledger::Entry;
use crate::sandbox::connection::{Connection, ConnectionError};
use crate::sandbox::monitor;
use crate::session::Uplink;
use report::Report;

/// How long a supervisor that was released may take to go by itself.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the processes in a task's cgroup may take to be gone.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long cleaning up is retried before the task is reported stopped all the same; the agent's
/// next start removes what is left.
const CLEAN_UP_ATTEMPTS: u32 = 20;

/// How long a microVM may take to end beyond the stop timeouts of its containers, and how long
/// nothing may happen while the last logs of one that has ended are stored.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// How often a microVM is told the time.
const CLOCK_PERIOD: Duration = Duration::from_secs(60);

/// What the session tells a task.
#[derive(Debug)]
pub enum Command {
    Stop(StopCause),
    LogsStored {
        container: String,
        upto: u64,
    },
    /// Write the task down.
    Snapshot(SnapshotId),
    /// Control has a new session: say everything again.
    Repeat,
    /// Control does not know the task (any more): take it off the host and out of the ledger.
    Forget,
}

/// Drives one task; ends when the task is stopped and reported so.
pub struct TaskDriver {
    host: Arc<Host>,
    entry: Entry,
    report: Report,
    commands: mpsc::Receiver<Command>,
    uplink: Uplink,
    /// Asked for by control, before or after the task has a supervisor.
    stop: Option<StopCause>,
    /// Control does not want to hear of the task any more.
    forget: bool,
    logs_stored: std::collections::HashMap<String, u64>,
}

impl TaskDriver {
    #[must_use]
    pub fn new(host: Arc<Host>, entry: Entry, commands: mpsc::Receiver<Command>, uplink: Uplink) -> Self {
        let report = Report::new(&entry);
        let stop = entry.assignment.stop.clone();
        Self {
            host,
            entry,
            report,
            commands,
            uplink,
            stop,
            forget: false,
            logs_stored: std::collections::HashMap::new(),
        }
    }

    /// The task's whole life, or the rest of it when the ledger's entry is of an earlier agent.
    pub async fn run(mut self) {
        if !self.report.is_stopped() {
            match self.boot().await {
                Ok(connection) => self.follow(connection).await,
                Err(cause) => self.report.stop(&cause),
            }
            self.clean_up().await;
        }
        self.publish().await;
        // Until control has recorded the end, the entry stays, and the end is repeated when asked.
        while !self.forget {
            match self.commands.recv().await {
                Some(Command::Repeat) => self.publish().await,
                Some(Command::Forget) => self.forget = true,
                Some(Command::Snapshot(id)) => self.no_snapshot(id).await,
                Some(Command::Stop(_) | Command::LogsStored { .. }) => {}
                None => return,
            }
        }
        if let Err(error) = self.host.ledger.remove(&self.entry.assignment.task) {
            tracing::error!(error = &error as &dyn std::error::Error, "a task cannot be forgotten");
        }
    }

    /// Follows the supervisor until all containers have ended and all their logs are stored.
    async fn follow(&mut self, mut connection: Connection) {
        let mut last: Option<SandboxState> = None;
        let is_guest = self.entry.assignment.spec.isolation == Isolation::Microvm;
        let mut clock = tokio::time::interval_at(Instant::now() + CLOCK_PERIOD, CLOCK_PERIOD);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut overdue = self.stop.as_ref().map(|_| self.latest_end());
        let mut states = Rate::default();
        let mut told = self.tell_stop(&mut connection).await;
        loop {
            if let Err(error) = std::mem::replace(&mut told, Ok(())) {
                match self.reconnect(&error).await {
                    // One that has it fail again and again is not to outlive its time that way.
                    Some(_) if is_guest && overdue.is_some_and(|end| end <= Instant::now()) => {
                        return self.end_sandbox().await;
                    }
                    Some(again) => connection = again,
                    None => return self.sandbox_died(),
                }
                if is_guest {
                    // A snapshot may have been under way.
                    drop(connection.send(&ToSupervisor::Thaw).await);
                }
                told = self.tell_stop(&mut connection).await;
                continue;
            }
            if last.as_ref().is_some_and(|state| self.is_over(state)) {
                return;
            }
            tokio::select! {
                message = connection.receive() => match message {
                    // Of the machine that this one is a copy of.
                    Ok(FromSupervisor::State { state }) if !self.is_of_this_task(&state) => {}
                    Ok(FromSupervisor::State { state }) => {
                        states.wait().await;
                        self.report.take_in(&state, self.now());
                        self.publish().await;
                        if is_guest {
                            // What it was told when it was made was long on its way on a loaded host.
                            told = connection.send(&ToSupervisor::Clock { now: self.now() }).await;
                        }
                        if matches!(state.phase, SandboxPhase::Stopping | SandboxPhase::Ended) {
                            overdue.get_or_insert_with(|| self.latest_end());
                        }
                        last = Some(state);
                    }
                    Ok(FromSupervisor::Logs { batch }) => self.forward(batch).await,
                    // To an agent that has gone.
                    Ok(FromSupervisor::Frozen { .. }) => {}
                    Err(error) => told = Err(error),
                },
                command = self.commands.recv() => match command {
                    Some(Command::Stop(cause)) => {
                        self.stop = Some(cause);
                        overdue.get_or_insert_with(|| self.latest_end());
                        told = self.tell_stop(&mut connection).await;
                    }
                    Some(Command::LogsStored { container, upto }) => {
                        let stored = self.logs_stored.entry(container.clone()).or_default();
                        *stored = upto.max(*stored);
                        // However long it takes to store what was written, it is on its way.
                        overdue = overdue.map(|end| end.max(Instant::now() + END_PATIENCE));
                        told = connection.send(&ToSupervisor::AckLogs { container, upto }).await;
                    }
                    Some(Command::Snapshot(id)) => self.snapshot(&mut connection, id).await,
                    Some(Command::Repeat) => {
                        self.publish().await;
                        // The supervisor says everything that is not acknowledged to a new connection.
                        if let Ok(again) = self.connect().await {
                            connection = again;
                        }
                    }
                    Some(Command::Forget) => {
                        self.forget = true;
                        return self.report.stop(&forgotten());
                    }
                    // The session is gone, and with it the agent: the task goes on without it.
                    None => std::future::pending().await,
                },
                _ = clock.tick(), if is_guest => {
                    told = connection.send(&ToSupervisor::Clock { now: self.now() }).await;
                }
                () = at(overdue), if is_guest => {
                    // Its supervisor is the tenant's, should the tenant have got that far.
                    let task = &self.entry.assignment.task;
                    tracing::warn!(%task, "a microVM that does not end is ended");
                    return self.end_sandbox().await;
                }
            }
        }
    }

    /// Tells the supervisor to stop, if the task shall; said again it changes nothing.
    async fn tell_stop(&self, connection: &mut Connection) -> Result<(), ConnectionError> {
        match self.stop.clone() {
            Some(cause) => connection.send(&ToSupervisor::Stop { cause }).await,
            None => Ok(()),
        }
    }

    /// When a task that is asked to stop now has ended, if its supervisor is sound: containers may
    /// have to be stopped one after the other.
    fn latest_end(&self) -> Instant {
        let timeouts = self.entry.assignment.spec.containers.iter().map(|c| u64::from(c.stop_timeout_secs));
        Instant::now() + Duration::from_secs(timeouts.sum()) + END_PATIENCE
    }

    async fn end_sandbox(&mut self) {
        self.kill_sandbox().await;
        self.sandbox_died();
    }

    async fn kill_sandbox(&self) {
        if let Some(slot) = &self.entry.slot
            && let Err(error) = slot.process.kill().await
        {
            let task = &self.entry.assignment.task;
            tracing::error!(%task, error = &error as &dyn std::error::Error, "a sandbox cannot be ended");
        }
    }

    fn is_of_this_task(&self, state: &SandboxState) -> bool {
        state.task.as_ref().is_none_or(|task| *task == self.entry.assignment.task)
    }

    fn is_over(&self, state: &SandboxState) -> bool {
        state.phase == SandboxPhase::Ended
            && state.containers.iter().all(|c| {
                // An earlier agent may have had the last of them acknowledged.
                let stored = self.logs_stored.get(&c.name).copied().unwrap_or(0).max(c.log_acknowledged);
                !self.has_log(&c.name) || stored >= c.log_end
            })
    }

    fn has_log(&self, container: &str) -> bool {
        self.entry.assignment.spec.containers.iter().any(|c| c.name == container && c.log.is_some())
    }

    async fn forward(&self, mut batch: LogBatch) {
        if !self.has_log(&batch.container) {
            // Nothing of the task's, so the supervisor is not ours any more.
            return;
        }
        let now = self.now();
        for record in &mut batch.records {
            // A guest has a clock of its own.
            record.at = record.at.clamp(Timestamp(0), now);
        }
        self.uplink.logs(&self.entry.assignment.task, batch).await;
    }

    async fn connect(&self) -> Result<Connection, ConnectionError> {
        let slot = self.entry.slot.as_ref().ok_or(ConnectionError::Closed)?;
        Connection::open(&slot.dir).await
    }

    /// A new connection, unless the supervisor is dead. A live one that breaks the protocol is
    /// killed: it cannot be trusted with the task any longer.
    async fn reconnect(&self, error: &ConnectionError) -> Option<Connection> {
        let task = &self.entry.assignment.task;
        let slot = self.entry.slot.as_ref()?;
        tracing::warn!(%task, error = error as &dyn std::error::Error, "the supervisor's connection was lost");
        for _ in 0..20 {
            if !slot.process.is_alive() {
                return None;
            }
            // First, so that one that accepts and closes keeps nobody busy.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Ok(connection) = self.connect().await {
                return Some(connection);
            }
        }
        if let Err(error) = slot.process.kill().await {
            tracing::error!(%task, error = &error as &dyn std::error::Error, "a supervisor that does not answer cannot be killed");
        }
        None
    }

    /// The supervisor is gone, with its containers. What it wrote down last (in a container sandbox)
    /// tells how far they came; how a microVM ended, its monitor has written down.
    fn sandbox_died(&mut self) {
        if let Some(slot) = &self.entry.slot
            && let Ok(bytes) = std::fs::read(slot.dir.join("state.json"))
            && let Ok(state) = serde_json::from_slice::<SandboxState>(&bytes)
            && state.task.as_ref() == Some(&self.entry.assignment.task)
        {
            self.report.take_in(&state, self.now());
        }
        self.report.end_all_containers(self.now());
        let ended = self.entry.slot.as_ref().and_then(|slot| monitor::ended(&slot.dir));
        let how = match &ended {
            Some(ended) => format!("the task's microVM ended: {}", monitor::describe_end(ended)),
            None if self.entry.assignment.spec.isolation == Isolation::Microvm => {
                "the task's microVM was killed".to_owned()
            }
            None => "the task's supervisor was killed".to_owned(),
        };
        let cause = self.stop.clone().unwrap_or_else(|| StopCause {
            code: StopCode::EssentialContainerExited,
            reason: format!("Essential container in task exited: {how}"),
        });
        self.report.stop(&cause);
    }

    /// Takes everything of the task off the host, then reports it stopped.
    async fn clean_up(&mut self) {
        self.report.advance(TaskStatus::Deprovisioning, self.now());
        self.publish().await;
        // Said each time that it failed.
        drop(self.take_off_host().await);
        self.report.advance(TaskStatus::Stopped, self.now());
    }

    /// Takes everything of the task off the host, with patience.
    async fn take_off_host(&mut self) -> Result<(), CleanUpError> {
        let mut pause = Duration::from_millis(10);
        let mut attempt = 1;
        loop {
            match self.try_clean_up().await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let task = &self.entry.assignment.task;
                    tracing::warn!(%task, attempt, error = %format_args!("{error:#}"), "cleaning up after a task failed");
                    if attempt == CLEAN_UP_ATTEMPTS {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
            attempt += 1;
        }
    }

    async fn try_clean_up(&mut self) -> Result<(), CleanUpError> {
        let task = self.entry.assignment.task.clone();
        if let Some(slot) = &self.entry.slot {
            if !self.forget
                && slot.process.is_alive()
                && let Ok(mut connection) = self.connect().await
                && connection.send(&ToSupervisor::Release).await.is_ok()
            {
                drop(slot.process.wait(RELEASE_TIMEOUT).await);
            }
            slot.process.kill().await?;
        }
        if let Some(link) = &self.entry.link {
            self.host.network.detach(link).await?;
        }
        let cgroup = self.host.cgroups.open_task(&task);
        let removing = tokio::task::spawn_blocking(move || cgroup.remove(CGROUP_TIMEOUT)).await;
        removing.unwrap_or(Ok(()))?;
        if let Some(slot) = &self.entry.slot {
            self.host.slots.discard(slot).await?;
        }
        self.host.images.release(task.as_str())?;
        Ok(())
    }

    /// Writes the observation to the ledger and sends it to control, if it says anything new.
    async fn publish(&mut self) {
        let observation = self.report.observation().clone();
        self.entry.observation = Some(observation.clone());
        if let Err(error) = self.host.ledger.put(&self.entry) {
            // The observation can be made again from the supervisor; the slot was recorded before.
            tracing::error!(task = %self.entry.assignment.task, error = &error as &dyn std::error::Error, "the ledger cannot be written");
        }
        self.uplink.report(observation).await;
    }

    fn now(&self) -> Timestamp {
        self.host.now()
    }
}

/// How often something may happen, of which each is written to disk.
#[derive(Default)]
struct Rate {
    window: Option<Instant>,
    count: u32,
}

impl Rate {
    const PER_SECOND: u32 = 100;

    /// Waits while there were too many within a second.
    async fn wait(&mut self) {
        let now = Instant::now();
        let window = *self.window.get_or_insert(now);
        let end = window + Duration::from_secs(1);
        if now >= end {
            (self.window, self.count) = (Some(now), 0);
        } else if self.count >= Self::PER_SECOND {
            tokio::time::sleep_until(end).await;
            (self.window, self.count) = (Some(end), 0);
        }
        self.count += 1;
    }
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Nobody will read this: control has no record of the task to keep it in.
fn forgotten() -> StopCause {
    StopCause { code: StopCode::UserInitiated, reason: "The task was forgotten.".to_owned() }
}

/// Why something of a task could not be removed yet.
#[derive(Debug, thiserror::Error)]
enum CleanUpError {
    #[error("process: {0:#}")]
    Process(#[from] crate::sandbox::process::ProcessError),
    #[error("slot: {0:#}")]
    Slot(#[from] crate::slot::SlotError),
    #[error("network: {0:#}")]
    Network(#[from] crate::net::NetError),
    #[error("cgroup: {0:#}")]
    Cgroup(#[from] crate::cgroup::CgroupError),
    #[error("images: {0:#}")]
    Images(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_slowed_down() {
        let (began, mut rate) = (Instant::now(), Rate::default());
        for _ in 0..Rate::PER_SECOND {
            rate.wait().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..2 * Rate::PER_SECOND {
            rate.wait().await;
        }
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }
}
