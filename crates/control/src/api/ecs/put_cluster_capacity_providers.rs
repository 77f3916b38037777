//! PutClusterCapacityProviders.

use aws_api::Error;
use aws_api::ecs::error::resource_in_use_exception;
use aws_api::ecs::{PutClusterCapacityProvidersRequest, PutClusterCapacityProvidersResponse};
use model::cluster::{Cluster, ClusterStatus};

use super::cluster_view::{self, Include};
use super::errors::{cluster_inactive, cluster_not_found};
use super::{Caller, Ecs, capacity_strategy, identifier, records, task_records};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: PutClusterCapacityProvidersRequest,
) -> Result<PutClusterCapacityProvidersResponse, Error> {
    let name = identifier::cluster(caller, Some(&input.cluster))?;
    let providers = capacity_strategy::checked_providers(&input.capacity_providers)?;
    let strategy = capacity_strategy::checked(&input.default_capacity_provider_strategy, &providers)?;
    let scope = caller.scope();
    let used = task_records::providers_in_use(&ecs.store, &scope, &name).await?;
    let cluster = records::update(&ecs.store, &scope.cluster(&name), |cluster: &mut Cluster| {
        if cluster.status == ClusterStatus::Inactive {
            return Err(cluster_inactive());
        }
        let removed = |provider: &&String| !providers.contains(provider);
        if cluster.capacity_providers.iter().filter(removed).any(|provider| used.contains(provider)) {
            return Err(resource_in_use_exception(
                "The specified capacity provider is in use and cannot be removed.",
            ));
        }
        cluster.capacity_providers.clone_from(&providers);
        cluster.default_strategy.clone_from(&strategy);
        Ok(())
    })
    .await?
    .ok_or_else(cluster_not_found)?;
    let counts = cluster_view::count(ecs, &scope, &name).await?;
    let view = cluster_view::view(caller, &cluster, counts, Include::CHANGED)?;
    Ok(PutClusterCapacityProvidersResponse { cluster: Some(view) })
}
