//! The cluster `default`.

use std::collections::BTreeMap;

use model::cluster::{Cluster, ClusterStatus, Tags};
use model::{ClusterName, Timestamp};

use super::capacity_strategy::PROVIDERS;

/// A cluster as the ECS console makes it on an account's first visit: with Fargate's capacity providers.
#[must_use]
pub fn default_cluster(name: ClusterName, now: Timestamp) -> Cluster {
    Cluster {
        name,
        status: ClusterStatus::Active,
        created_at: now,
        settings: BTreeMap::from([("containerInsights".to_owned(), "disabled".to_owned())]),
        capacity_providers: PROVIDERS.map(str::to_owned).to_vec(),
        default_strategy: Vec::new(),
        configuration: None,
        service_connect_defaults: None,
        tags: Tags::new(),
    }
}
