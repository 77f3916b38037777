//! Writing a running task down, and beginning a task where another was written down.

use model::SnapshotId;
use model::microvm::SCRATCH_DEVICE;
use model::sandbox::Identity;
use model::snapshot::{SnapshotReport, SnapshotSource};
use model::spec::Isolation;

use super::boot::failed;
use super::*;
use crate::error_chain::chain;
use crate::sandbox::microvm::{self, MicrovmError};
use crate::sandbox::monitor::MonitorError;
use crate::scratch::copy_sparse;
use crate::slot::SlotRecord;
use crate::snapshot::{Description, Draft, Saved};

/// The most that is kept of a guest's reason, in characters.
const MAX_REASON: usize = 300;
/// How long a supervisor may take until no process of its task runs.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no snapshot of a task was made.
#[derive(Debug, thiserror::Error)]
enum TaskSnapshotError {
    #[error("the task is {0}; only a RUNNING task can be snapshotted")]
    NotRunning(&'static str),
    #[error("the task does not run in a microVM")]
    NotMicrovm,
    #[error("the task was started by an earlier version of Coracle, which did not note what it is made of")]
    Unknown,
    #[error("the task cannot be frozen: {0}")]
    NotFrozen(String),
    #[error("the task's supervisor did not answer within {} seconds", FREEZE_TIMEOUT.as_secs())]
    Silent,
    #[error("the task's supervisor cannot be reached")]
    Connection(#[from] ConnectionError),
    #[error("the machine cannot be written down")]
    Monitor(#[from] MonitorError),
    #[error("the machine cannot be looked at")]
    Microvm(#[from] MicrovmError),
    #[error("the task's disk cannot be copied")]
    Disk(#[source] std::io::Error),
    #[error(transparent)]
    Store(#[from] crate::snapshot::SnapshotError),
    #[error("the agent is stopping")]
    Stopping,
}

/// Blocking work, off the tasks' threads.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, TaskSnapshotError>
where
    T: Send + 'static,
    E: Into<TaskSnapshotError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|_| TaskSnapshotError::Stopping)?.map_err(Into::into)
}

impl TaskDriver {
    /// Makes a snapshot of the task, which stands still meanwhile, and reports what became of it.
    pub(super) async fn snapshot(&mut self, connection: &mut Connection, id: SnapshotId) {
        let task = self.entry.assignment.task.clone();
        let report = match self.try_snapshot(connection, &id).await {
            Ok(None) => return,
            Ok(Some(made)) => {
                tracing::info!(%task, snapshot = %id, paused_ms = made.paused_ms, "made a snapshot");
                made.report()
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(%task, snapshot = %id, reason, "a snapshot failed");
                SnapshotReport::failed(id, reason)
            }
        };
        self.uplink.snapshot(report).await;
    }

    /// There is nothing to make a snapshot of, now or ever.
    pub(super) async fn no_snapshot(&self, id: SnapshotId) {
        let status = self.report.observation().status.as_str();
        let reason = TaskSnapshotError::NotRunning(status).to_string();
        self.uplink.snapshot(SnapshotReport::failed(id, reason)).await;
    }

    async fn try_snapshot(
        &mut self,
        connection: &mut Connection,
        id: &SnapshotId,
    ) -> Result<Option<Description>, TaskSnapshotError> {
        let status = self.report.observation().status;
        if status != TaskStatus::Running {
            return Err(TaskSnapshotError::NotRunning(status.as_str()));
        }
        let slot = self.entry.slot.clone().filter(|slot| slot.isolation == Isolation::Microvm);
        let slot = slot.ok_or(TaskSnapshotError::NotMicrovm)?;
        let machine = self.entry.machine.clone().ok_or(TaskSnapshotError::Unknown)?;
        let (snapshots, scratch, size) = (self.host.snapshots.clone(), slot.scratch.clone(), machine.size);
        let wanted = id.clone();
        let Some(draft) = blocking(move || snapshots.begin(&wanted, size, &scratch)).await? else {
            return Ok(None);
        };
        let frozen = self.freeze(connection).await;
        let written = match frozen {
            Ok(()) => self.write_down(&slot, draft).await,
            Err(error) => Err(error),
        };
        // Whatever became of it, the task goes on; a lost connection is found out by who follows it.
        drop(connection.send(&ToSupervisor::Clock { now: self.now() }).await);
        drop(connection.send(&ToSupervisor::Thaw).await);
        let (draft, paused) = written?;
        let spec = &self.entry.assignment.spec;
        let observed = &self.report.observation().containers;
        let description = Description {
            id: id.clone(),
            task: self.entry.assignment.task.clone(),
            size,
            programs: machine.programs,
            images: observed.iter().map(|c| (c.name.clone(), c.image_digest.clone())).collect(),
            layers: 0,
            ephemeral_storage_gib: spec.ephemeral_storage_gib,
            memory_length: 0,
            scratch_length: 0,
            memory_sum: 0,
            memory_bytes: 0,
            disk_bytes: 0,
            made_at: self.now(),
            paused_ms: u64::try_from(paused.as_millis()).unwrap_or(u64::MAX),
        };
        blocking(move || draft.finish(description, &machine.layers)).await.map(Some)
    }

    /// Has the supervisor let no process of the task run; what it says meanwhile is taken in.
    async fn freeze(&mut self, connection: &mut Connection) -> Result<(), TaskSnapshotError> {
        connection.send(&ToSupervisor::Freeze).await?;
        let deadline = tokio::time::Instant::now() + FREEZE_TIMEOUT;
        loop {
            let message = tokio::time::timeout_at(deadline, connection.receive()).await;
            match message.map_err(|_| TaskSnapshotError::Silent)?? {
                FromSupervisor::Frozen { failure: None } => return Ok(()),
                FromSupervisor::Frozen { failure: Some(why) } => {
                    // The guest's words may be the tenant's.
                    return Err(TaskSnapshotError::NotFrozen(why.chars().take(MAX_REASON).collect()));
                }
                FromSupervisor::State { state } if !self.is_of_this_task(&state) => {}
                FromSupervisor::State { state } => {
                    self.report.take_in(&state, self.now());
                    self.publish().await;
                }
                FromSupervisor::Logs { batch } => self.forward(batch).await,
            }
        }
    }

    async fn write_down(
        &self,
        slot: &SlotRecord,
        draft: Draft,
    ) -> Result<(Draft, Duration), TaskSnapshotError> {
        let (state, memory) = draft.machine_files()?;
        let (from, to) = (slot.scratch.clone(), draft.scratch());
        let copy = || async move {
            blocking(move || copy_sparse(&from, &to).map_err(TaskSnapshotError::Disk)).await
        };
        let (copied, paused) = microvm::save(&slot.dir, slot.process, &state, &memory, copy).await?;
        copied?;
        Ok((draft, paused))
    }

    /// Finds the snapshot that the task begins from, and gives the task a disk and layers like those
    /// of it, in its slot.
    pub(super) async fn open_snapshot(
        &mut self,
        source: &SnapshotSource,
    ) -> Result<(Saved, Vec<std::path::PathBuf>), StopCause> {
        let slot = self.entry.slot.clone();
        let (Some(slot), Some(templates)) = (slot, self.host.slots.machines()) else {
            return Err(not_restored(&TaskSnapshotError::NotMicrovm));
        };
        let spec = &self.entry.assignment.spec;
        let size = microvm::Size::of(spec.cpu_units, spec.memory_mib);
        let (programs, gib) = (templates.programs().clone(), spec.ephemeral_storage_gib);
        let (snapshots, id) = (self.host.snapshots.clone(), source.id.clone());
        let opening = blocking(move || {
            let saved = snapshots.open_saved(&id)?;
            saved.description.check(&programs, size, gib)?;
            saved.copy_scratch(&slot.scratch)?;
            let layers = saved.link_layers(&slot.dir.join("layers"))?;
            Ok::<_, crate::snapshot::SnapshotError>((saved, layers))
        });
        let (saved, layers) = opening.await.map_err(|error| not_restored(&error))?;
        for (container, digest) in &saved.description.images {
            if let Some(digest) = digest {
                self.report.image(container, digest.clone());
            }
        }
        Ok((saved, layers))
    }

    /// What makes the copy of another task's machine this task's.
    pub(super) fn identity(&self) -> Result<Identity, StopCause> {
        let spec = self.sandbox_spec(&[])?;
        debug_assert_eq!(spec.scratch, std::path::Path::new(SCRATCH_DEVICE));
        let guest = spec.guest.ok_or_else(|| not_restored(&TaskSnapshotError::NotMicrovm))?;
        Ok(Identity {
            task: spec.task,
            hostname: spec.hostname,
            address: spec.address,
            resolver: spec.resolver,
            search_domain: spec.search_domain,
            guest,
        })
    }
}

/// A task that does not begin from its snapshot, and why.
pub(super) fn not_restored(error: &dyn std::error::Error) -> StopCause {
    failed(format!("ResourceInitializationError: failed to restore the snapshot: {}", chain(error)))
}
