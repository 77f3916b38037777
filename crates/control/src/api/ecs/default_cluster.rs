//! The cluster `default`.

use std::collections::BTreeMap;

use aws_api::Error;
use model::cluster::{Cluster, ClusterStatus, Tags};
use model::{AccountId, ClusterName, Region};
use store::Txn;

use super::capacity_strategy::PROVIDERS;
use super::{Ecs, errors, records};
use crate::keys::Scope;

/// Creates the cluster `default` of an account and region, with Fargate's capacity providers, as AWS's
/// console does on an account's first visit. Where it is or was (a user may have deleted it), nothing
/// changes.
pub async fn ensure_default_cluster(ecs: &Ecs, account: &AccountId, region: &Region) -> Result<(), Error> {
    let name = ClusterName::parse("default").map_err(|_| errors::cluster_not_found())?;
    let scope = Scope { account: account.clone(), region: region.clone() };
    let key = scope.cluster(&name);
    let cluster = Cluster {
        name,
        status: ClusterStatus::Active,
        created_at: ecs.clock.now(),
        settings: BTreeMap::from([("containerInsights".to_owned(), "disabled".to_owned())]),
        capacity_providers: PROVIDERS.map(str::to_owned).to_vec(),
        default_strategy: Vec::new(),
        configuration: None,
        service_connect_defaults: None,
        tags: Tags::new(),
    };
    records::commit(ecs, Txn::new().expect_absent(&key).put_json(&key, &cluster)).await?;
    Ok(())
}
