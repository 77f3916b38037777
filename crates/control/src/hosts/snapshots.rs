//! Between the snapshots that are wanted of a host and what it says of them.

use link::SnapshotOrder;
use model::SnapshotId;
use model::snapshot::{Snapshot, SnapshotReport, SnapshotStatus};

use super::*;
use crate::keys::Scope;

/// The snapshots of one host that may still be there.
pub(super) type Known = HashMap<SnapshotId, (Scope, Option<SnapshotStatus>)>;

impl Session<'_> {
    /// Tells the agent which snapshots it shall have: all that have not failed.
    pub(super) async fn tell_snapshots(&mut self) -> Result<(), SessionError> {
        let store = &self.hosts.store;
        let (mut known, mut wanted) = (Known::new(), Vec::new());
        for (_, found) in store.range_json::<Snapshot>(Range::prefix(keys::SNAPSHOTS)).await?.entries {
            let snapshot = found.value;
            if snapshot.host != self.host {
                continue;
            }
            let scope = Scope { account: snapshot.account, region: snapshot.region };
            let report = store.get_json::<SnapshotReport>(&scope.snapshot_report(&snapshot.id)).await?;
            let status = report.map(|report| report.value.status);
            if status == Some(SnapshotStatus::Failed) {
                continue;
            }
            known.insert(snapshot.id.clone(), (scope, status));
            wanted.push(SnapshotOrder { id: snapshot.id, task: snapshot.task });
        }
        self.snapshots = known;
        self.to_agent.send(ToAgent::Snapshots { wanted }).map_err(|_| SessionError::Closed)
    }

    /// Stores what became of a snapshot. It is said again at each hello: only news is written. One
    /// that was READY can be lost; one that failed stays so.
    pub(super) async fn snapshot_reported(&mut self, report: SnapshotReport) -> Result<(), SessionError> {
        let Some((scope, status)) = self.snapshots.get_mut(&report.id) else {
            // Deleted, or failed, in the meantime: the agent is told to remove it.
            return self.tell_snapshots().await;
        };
        if *status == Some(report.status) {
            return Ok(());
        }
        let txn = Txn::new()
            .expect_exists(scope.snapshot(&report.id))
            .put_json(scope.snapshot_report(&report.id), &report);
        match self.hosts.store.commit(txn).await {
            Ok(_) => *status = Some(report.status),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if report.status == SnapshotStatus::Failed {
            self.tell_snapshots().await?;
        }
        Ok(())
    }
}
