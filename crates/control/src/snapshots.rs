//! Task snapshots: `/_coracle/` paths, since AWS has no such API. Starting tasks from a snapshot is
//! RunTask's business (tag `coracle.snapshot`).
//!
//! Handlers write intent ([`Snapshot`]) and look at what hosts reported ([`SnapshotReport`]);
//! `hosts/snapshots.rs` is between the two.

use aws_api::Error as AwsError;
use http::StatusCode;
use model::assignment::{Assignment, Decision};
use model::observation::Observation;
use model::snapshot::{Snapshot, SnapshotReport, SnapshotSource, SnapshotStatus};
use model::spec::Isolation;
use model::task::Task;
use model::{Arn, ClusterName, SnapshotId, TaskId, TaskStatus};
use serde::Serialize;
use store::{Range, Store, Txn};

use crate::api::Caller;
use crate::clock::Clock;
use crate::random;

/// Snapshots that an account may have in a region: each takes up to its task's memory and disk.
pub const MAX_SNAPSHOTS: usize = 100;

/// Why a call about snapshots is refused; said to the caller.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("there is no task {task} in the cluster {cluster}")]
    NoTask { cluster: ClusterName, task: TaskId },
    #[error("there is no snapshot {0}")]
    NoSnapshot(String),
    #[error("the task is {0}; only a RUNNING task can be snapshotted")]
    NotRunning(&'static str),
    #[error(
        "the task runs in a container sandbox; only a task in a microVM can be snapshotted (coracle up --isolation \
         microvm, or the tag coracle.isolation=microvm)"
    )]
    NotMicrovm,
    #[error("there are {MAX_SNAPSHOTS} snapshots already; delete some with `coracle snapshots rm`")]
    TooMany,
    #[error("the state cannot be read")]
    Read(#[from] store::Error),
    #[error("the snapshot's record cannot be written")]
    Commit(#[from] store::CommitError),
}

impl SnapshotError {
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoTask { .. } | Self::NoSnapshot(_) => StatusCode::NOT_FOUND,
            Self::NotRunning(_) | Self::NotMicrovm | Self::TooMany => StatusCode::CONFLICT,
            Self::Read(_) | Self::Commit(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A snapshot as callers see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    pub snapshot_id: SnapshotId,
    pub status: SnapshotStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub task_arn: String,
    pub task_definition_arn: String,
    pub host_id: String,
    /// Seconds since 1970, as in ECS's answers.
    pub created_at: f64,
    /// When the task's machine stood still, and for how many milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<f64>,
    pub paused_ms: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

fn view(snapshot: &Snapshot, report: Option<SnapshotReport>) -> View {
    let Snapshot { region, account, .. } = snapshot;
    let report = report.unwrap_or_else(|| SnapshotReport {
        status: SnapshotStatus::Pending,
        ..SnapshotReport::failed(snapshot.id.clone(), "")
    });
    let seconds = |at: model::Timestamp| at.millis() as f64 / 1000.0;
    View {
        snapshot_id: snapshot.id.clone(),
        status: report.status,
        reason: report.reason.filter(|reason| !reason.is_empty()),
        task_arn: Arn::task(region, account, &snapshot.cluster, &snapshot.task).to_string(),
        task_definition_arn: Arn::task_definition(region, account, &snapshot.family, snapshot.revision)
            .to_string(),
        host_id: snapshot.host.to_string(),
        created_at: seconds(snapshot.created_at),
        made_at: report.made_at.map(seconds),
        paused_ms: report.paused_ms,
        memory_bytes: report.memory_bytes,
        disk_bytes: report.disk_bytes,
    }
}

/// The snapshots of an account and region.
#[derive(Clone)]
pub struct Snapshots {
    pub store: Store,
    pub clock: Clock,
}

impl Snapshots {
    /// Asks for a snapshot of a task, which its host then makes.
    ///
    /// # Errors
    /// The task is not there, does not run, or not in a microVM; or there are too many snapshots.
    pub async fn create(
        &self,
        caller: &Caller,
        cluster: &ClusterName,
        task: &TaskId,
    ) -> Result<View, SnapshotError> {
        let scope = caller.scope();
        let path = scope.task(cluster, task);
        let no_task = || SnapshotError::NoTask { cluster: cluster.clone(), task: task.clone() };
        let intent = self.store.get_json::<Task>(&path.intent()).await?.ok_or_else(no_task)?.value;
        if intent.spec.isolation != Isolation::Microvm {
            return Err(SnapshotError::NotMicrovm);
        }
        let assigned = self.store.get_json::<Assignment>(&path.assignment()).await?.map(|found| found.value);
        let observed = self.store.get_json::<Observation>(&path.observation()).await?;
        let status = observed.map_or(TaskStatus::Provisioning, |found| found.value.status);
        let host = match assigned.map(|assigned| assigned.decision) {
            Some(Decision::Placed { host, .. }) if status == TaskStatus::Running => host,
            Some(Decision::Refused { .. }) => {
                return Err(SnapshotError::NotRunning(TaskStatus::Stopped.as_str()));
            }
            _ => return Err(SnapshotError::NotRunning(status.as_str())),
        };
        let there = self.store.range(Range::prefix(scope.snapshots()).keys_only()).await?;
        if there.kvs.len() >= MAX_SNAPSHOTS {
            return Err(SnapshotError::TooMany);
        }
        let snapshot = Snapshot {
            id: random::snapshot_id(),
            account: caller.account.clone(),
            region: caller.region.clone(),
            cluster: cluster.clone(),
            task: task.clone(),
            family: intent.spec.family.clone(),
            revision: intent.spec.revision,
            cpu_units: intent.spec.cpu_units,
            memory_mib: intent.spec.memory_mib,
            ephemeral_storage_gib: intent.spec.ephemeral_storage_gib,
            host,
            created_at: self.clock.now(),
        };
        let key = scope.snapshot(&snapshot.id);
        let txn = Txn::new().expect_absent(&key).expect_exists(path.intent()).put_json(&key, &snapshot);
        self.store.commit(txn).await?;
        Ok(view(&snapshot, None))
    }

    /// # Errors
    /// The state cannot be read.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<View>, SnapshotError> {
        let mut views = Vec::new();
        let found = self.store.range_json::<Snapshot>(Range::prefix(caller.scope().snapshots())).await?;
        for (_, snapshot) in found.entries {
            views.push(self.seen(caller, &snapshot.value).await?);
        }
        views.sort_by(|a, b| b.created_at.total_cmp(&a.created_at));
        Ok(views)
    }

    /// # Errors
    /// There is no such snapshot.
    pub async fn get(&self, caller: &Caller, id: &str) -> Result<View, SnapshotError> {
        let snapshot = find(&self.store, caller, id).await?;
        self.seen(caller, &snapshot).await
    }

    /// Deletes the records; the host removes the snapshot when it hears of it. Tasks that were started
    /// from it go on.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub async fn delete(&self, caller: &Caller, id: &str) -> Result<(), SnapshotError> {
        let snapshot = find(&self.store, caller, id).await?;
        let scope = caller.scope();
        let txn = Txn::new().delete(scope.snapshot(&snapshot.id)).delete(scope.snapshot_report(&snapshot.id));
        self.store.commit(txn).await?;
        Ok(())
    }

    async fn seen(&self, caller: &Caller, snapshot: &Snapshot) -> Result<View, SnapshotError> {
        Ok(view(snapshot, report(&self.store, caller, &snapshot.id).await?))
    }
}

async fn find(store: &Store, caller: &Caller, text: &str) -> Result<Snapshot, SnapshotError> {
    let none = || SnapshotError::NoSnapshot(text.chars().take(64).collect());
    let id = SnapshotId::parse(text).map_err(|_| none())?;
    Ok(store.get_json::<Snapshot>(&caller.scope().snapshot(&id)).await?.ok_or_else(none)?.value)
}

async fn report(
    store: &Store,
    caller: &Caller,
    id: &SnapshotId,
) -> Result<Option<SnapshotReport>, store::Error> {
    Ok(store.get_json(&caller.scope().snapshot_report(id)).await?.map(|found| found.value))
}

/// What a run request that names a snapshot asks for.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The tag's value.
    pub id: &'a str,
    pub family: &'a str,
    pub revision: u32,
    /// Whether anything but roles is overridden.
    pub has_overrides: bool,
    pub isolation: Isolation,
}

/// Where the tasks of a run request begin.
///
/// # Errors
/// InvalidParameterException when no task can begin there; its text says why.
pub async fn source(
    store: &Store,
    caller: &Caller,
    asked: &Asked<'_>,
    invalid: impl Fn(String) -> AwsError,
    internal: impl Fn(store::Error) -> AwsError,
) -> Result<SnapshotSource, AwsError> {
    let id = asked.id;
    let snapshot = match find(store, caller, id).await {
        Ok(snapshot) => snapshot,
        Err(SnapshotError::Read(error)) => return Err(internal(error)),
        Err(error) => return Err(invalid(format!("{error}."))),
    };
    match report(store, caller, &snapshot.id).await.map_err(internal)? {
        Some(report) if report.status == SnapshotStatus::Ready => {}
        Some(report) if report.status == SnapshotStatus::Failed => {
            let why = report.reason.unwrap_or_default();
            return Err(invalid(format!("The snapshot {id} has failed: {why}")));
        }
        _ => return Err(invalid(format!("The snapshot {id} is not READY yet."))),
    }
    let (family, revision) = (&snapshot.family, snapshot.revision);
    if (asked.family, asked.revision) != (family.as_str(), revision) {
        return Err(invalid(format!(
            "The snapshot {id} is of a task of {family}:{revision}, and cannot become one of {}:{}.",
            asked.family, asked.revision
        )));
    }
    if asked.has_overrides {
        return Err(invalid(format!(
            "Overrides of containers, size and storage do not apply to a task from the snapshot {id}: its processes go \
             on as they were."
        )));
    }
    if asked.isolation == Isolation::Container {
        return Err(invalid(format!("The snapshot {id} is of a microVM, and cannot go on in a container.")));
    }
    Ok(SnapshotSource { id: snapshot.id, host: snapshot.host })
}
