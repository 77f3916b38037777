//! DeleteCluster.

use aws_api::Error;
use aws_api::ecs::error::cluster_contains_tasks_exception;
use aws_api::ecs::{DeleteClusterRequest, DeleteClusterResponse};
use model::cluster::{Cluster, ClusterStatus};

use super::cluster_view::{self, Counts, Include};
use super::errors::cluster_not_found;
use super::{Caller, Ecs, identifier, records};

/// Makes a cluster without tasks INACTIVE. Deleting an inactive one again changes nothing.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DeleteClusterRequest,
) -> Result<DeleteClusterResponse, Error> {
    let name = identifier::cluster(caller, Some(&input.cluster))?;
    let scope = caller.scope();
    let key = scope.cluster(&name);
    records::cluster(ecs, caller, &name).await?;
    refuse_tasks(cluster_view::count(ecs, &scope, &name).await?)?;
    let cluster = set_status(ecs, &key, ClusterStatus::Inactive).await?;
    // RunTask's transaction demands the active cluster it read, so from here on no task comes in; one
    // may have come in since the count.
    let counts = cluster_view::count(ecs, &scope, &name).await?;
    if !counts.none_active() {
        set_status(ecs, &key, ClusterStatus::Active).await?;
    }
    refuse_tasks(counts)?;
    let view = cluster_view::view(caller, &cluster, counts, Include::CHANGED)?;
    Ok(DeleteClusterResponse { cluster: Some(view) })
}

async fn set_status(ecs: &Ecs, key: &str, status: ClusterStatus) -> Result<Cluster, Error> {
    let change = |cluster: &mut Cluster| {
        cluster.status = status;
        Ok(())
    };
    records::update(&ecs.store, key, change).await?.ok_or_else(cluster_not_found)
}

fn refuse_tasks(counts: Counts) -> Result<(), Error> {
    if counts.none_active() {
        return Ok(());
    }
    Err(cluster_contains_tasks_exception("The Cluster cannot be deleted while Tasks are active."))
}
