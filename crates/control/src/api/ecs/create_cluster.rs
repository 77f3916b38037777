//! CreateCluster.

use std::collections::BTreeMap;

use aws_api::Error;
use aws_api::ecs::{CreateClusterRequest, CreateClusterResponse};
use model::ClusterName;
use model::cluster::{Cluster, ClusterStatus};
use store::{Txn, Versioned};

use super::cluster_view::{self, Include};
use super::errors::{contention, invalid};
use super::records::{self, Outcome};
use super::{Caller, Ecs, account_settings, capacity_strategy, cluster_settings, tags};

/// Creates a cluster. For a name that an active cluster has it answers with that cluster, unless the
/// request says otherwise than the cluster is.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: CreateClusterRequest,
) -> Result<CreateClusterResponse, Error> {
    let wanted = checked(ecs, caller, &input).await?;
    let scope = caller.scope();
    let key = scope.cluster(&wanted.name);
    for _ in 0..records::ATTEMPTS {
        let (cluster, txn) = match records::load::<Cluster>(&ecs.store, &key).await? {
            Some(Versioned { value, .. }) if value.status == ClusterStatus::Active => {
                check_same(&input, &wanted, &value)?;
                let counts = cluster_view::count(ecs, &scope, &value.name).await?;
                let view = cluster_view::view(caller, &value, counts, Include::CHANGED)?;
                return Ok(CreateClusterResponse { cluster: Some(view) });
            }
            Some(inactive) => (&wanted, Txn::new().expect_revision(&key, inactive.revision)),
            None => (&wanted, Txn::new().expect_absent(&key)),
        };
        if records::commit(&ecs.store, txn.put_json(&key, cluster)).await? == Outcome::Committed {
            let counts = cluster_view::count(ecs, &scope, &cluster.name).await?;
            let view = cluster_view::view(caller, cluster, counts, Include::CHANGED)?;
            return Ok(CreateClusterResponse { cluster: Some(view) });
        }
    }
    Err(contention())
}

async fn checked(ecs: &Ecs, caller: &Caller, input: &CreateClusterRequest) -> Result<Cluster, Error> {
    let name = input.cluster_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let name = ClusterName::parse(name).map_err(|_| {
        invalid("Cluster name must have 1 to 255 letters (uppercase and lowercase), numbers, hyphens and underscores.")
    })?;
    let mut settings = match account_settings::effective(ecs, caller, "containerInsights").await? {
        Some(value) => BTreeMap::from([("containerInsights".to_owned(), value)]),
        None => BTreeMap::new(),
    };
    settings.extend(cluster_settings::checked(input.settings.as_deref().unwrap_or_default())?);
    let capacity_providers =
        capacity_strategy::checked_providers(input.capacity_providers.as_deref().unwrap_or_default())?;
    let strategy = input.default_capacity_provider_strategy.as_deref().unwrap_or_default();
    Ok(Cluster {
        name,
        status: ClusterStatus::Active,
        created_at: ecs.clock.now(),
        settings,
        default_strategy: capacity_strategy::checked(strategy, &capacity_providers)?,
        capacity_providers,
        configuration: match &input.configuration {
            Some(configuration) => Some(cluster_settings::checked_configuration(configuration)?),
            None => None,
        },
        service_connect_defaults: match &input.service_connect_defaults {
            Some(defaults) => cluster_settings::checked_service_connect(defaults)?,
            None => None,
        },
        tags: tags::checked(input.tags.as_deref())?,
    })
}

/// Refuses what the request says and the existing cluster is not.
fn check_same(input: &CreateClusterRequest, wanted: &Cluster, existing: &Cluster) -> Result<(), Error> {
    let differs = input.settings.is_some() && wanted.settings != existing.settings
        || input.tags.is_some() && wanted.tags != existing.tags
        || input.configuration.is_some() && wanted.configuration != existing.configuration
        || input.capacity_providers.is_some() && wanted.capacity_providers != existing.capacity_providers
        || input.default_capacity_provider_strategy.is_some()
            && wanted.default_strategy != existing.default_strategy
        || input.service_connect_defaults.is_some()
            && wanted.service_connect_defaults != existing.service_connect_defaults;
    if differs {
        return Err(invalid(
            "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
        ));
    }
    Ok(())
}
