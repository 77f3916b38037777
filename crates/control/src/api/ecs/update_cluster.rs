//! UpdateCluster.

use aws_api::Error;
use aws_api::ecs::{UpdateClusterRequest, UpdateClusterResponse};
use model::cluster::{Cluster, ClusterStatus};

use super::cluster_view::{self, Include};
use super::errors::{cluster_inactive, cluster_not_found};
use super::{Caller, Ecs, cluster_settings, identifier, records};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: UpdateClusterRequest,
) -> Result<UpdateClusterResponse, Error> {
    let name = identifier::cluster(caller, Some(&input.cluster))?;
    let settings = input.settings.as_deref().map(cluster_settings::checked).transpose()?;
    let configuration =
        input.configuration.as_ref().map(cluster_settings::checked_configuration).transpose()?;
    let connect =
        input.service_connect_defaults.as_ref().map(cluster_settings::checked_service_connect).transpose()?;
    let scope = caller.scope();
    let cluster = records::update(&ecs.store, &scope.cluster(&name), |cluster: &mut Cluster| {
        if cluster.status == ClusterStatus::Inactive {
            return Err(cluster_inactive());
        }
        cluster.settings.extend(settings.clone().unwrap_or_default());
        if let Some(configuration) = &configuration {
            cluster.configuration = Some(configuration.clone());
        }
        if let Some(defaults) = &connect {
            cluster.service_connect_defaults.clone_from(defaults);
        }
        Ok(())
    })
    .await?
    .ok_or_else(cluster_not_found)?;
    let counts = cluster_view::count(ecs, &scope, &name).await?;
    let view = cluster_view::view(caller, &cluster, counts, Include::CHANGED)?;
    Ok(UpdateClusterResponse { cluster: Some(view) })
}
