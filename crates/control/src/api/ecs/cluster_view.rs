//! Clusters as the API shows them.

use std::collections::HashSet;

use aws_api::Error;
use aws_api::ecs::{Cluster as WireCluster, ClusterSetting, KeyValuePair};
use model::assignment::{Assignment, Decision};
use model::cluster::Cluster;
use model::{Arn, ClusterName, TaskStatus};
use serde::Deserialize;
use store::Range;

use super::errors::{corrupt, internal};
use super::{Caller, Ecs, capacity_strategy, records, tags};
use crate::keys::{ASSIGNMENTS, OBSERVATIONS, Scope, TASKS};

/// What a caller wants beside the cluster itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Include {
    pub attachments: bool,
    pub configurations: bool,
    pub settings: bool,
    pub statistics: bool,
    pub tags: bool,
}

impl Include {
    /// What CreateCluster and the like answer with.
    pub const CHANGED: Self =
        Self { attachments: false, configurations: true, settings: true, statistics: false, tags: true };

    pub fn parse(fields: &[String]) -> Self {
        let has = |name: &str| fields.iter().any(|f| f == name);
        Self {
            attachments: has("ATTACHMENTS"),
            configurations: has("CONFIGURATIONS"),
            settings: has("SETTINGS"),
            statistics: has("STATISTICS"),
            tags: has("TAGS"),
        }
    }
}

/// How many of a cluster's tasks are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// RUNNING.
    pub running: i32,
    /// On their way there.
    pub pending: i32,
    /// On their way to STOPPED.
    pub stopping: i32,
}

impl Counts {
    pub fn none_active(self) -> bool {
        self == Self::default()
    }

    fn add(&mut self, status: TaskStatus) {
        match status {
            TaskStatus::Provisioning | TaskStatus::Pending | TaskStatus::Activating => self.pending += 1,
            TaskStatus::Running => self.running += 1,
            TaskStatus::Deactivating | TaskStatus::Stopping | TaskStatus::Deprovisioning => {
                self.stopping += 1
            }
            TaskStatus::Stopped => {}
        }
    }
}

/// Counts a cluster's tasks.
pub(super) async fn count(ecs: &Ecs, scope: &Scope, cluster: &ClusterName) -> Result<Counts, Error> {
    /// The part of an observation that is counted.
    #[derive(Deserialize)]
    struct Observed {
        status: TaskStatus,
    }
    let intents = scope.cluster_tasks(cluster);
    let path = intents.strip_prefix(TASKS).unwrap_or(&intents);
    let mut counts = Counts::default();
    let mut observed = HashSet::new();
    let prefix = format!("{OBSERVATIONS}{path}");
    let found = ecs.store.range_json::<Observed>(Range::prefix(&prefix)).await.map_err(internal)?;
    for (key, observation) in found.entries {
        counts.add(observation.value.status);
        observed.insert(key[OBSERVATIONS.len()..].to_owned());
    }
    // Tasks that no host has reported: waiting for one, or refused.
    let found = ecs.store.range(Range::prefix(&intents).keys_only()).await.map_err(internal)?;
    for kv in found.kvs {
        let task = &kv.key[TASKS.len()..];
        if !observed.contains(task) {
            let assignment = records::load::<Assignment>(&ecs.store, &format!("{ASSIGNMENTS}{task}")).await?;
            let refused = assignment.is_some_and(|a| matches!(a.value.decision, Decision::Refused { .. }));
            counts.add(if refused { TaskStatus::Stopped } else { TaskStatus::Provisioning });
        }
    }
    Ok(counts)
}

pub(super) fn view(
    caller: &Caller,
    cluster: &Cluster,
    counts: Counts,
    include: Include,
) -> Result<WireCluster, Error> {
    let configuration = match &cluster.configuration {
        Some(value) if include.configurations => {
            Some(serde_json::from_value(value.clone()).map_err(|e| corrupt("cluster configuration", &e))?)
        }
        _ => None,
    };
    let service_connect_defaults = match &cluster.service_connect_defaults {
        Some(value) => {
            Some(serde_json::from_value(value.clone()).map_err(|e| corrupt("serviceConnectDefaults", &e))?)
        }
        None => None,
    };
    let settings = cluster.settings.iter().filter(|_| include.settings);
    Ok(WireCluster {
        cluster_arn: Some(Arn::cluster(&caller.region, &caller.account, &cluster.name).to_string()),
        cluster_name: Some(cluster.name.to_string()),
        configuration,
        status: Some(cluster.status.as_str().to_owned()),
        registered_container_instances_count: Some(0),
        running_tasks_count: Some(counts.running),
        pending_tasks_count: Some(counts.pending),
        active_services_count: Some(0),
        statistics: Some(if include.statistics { statistics(counts) } else { Vec::new() }),
        tags: Some(if include.tags { tags::to_wire(&cluster.tags) } else { Vec::new() }),
        settings: Some(
            settings
                .map(|(name, value)| ClusterSetting { name: Some(name.clone()), value: Some(value.clone()) })
                .collect(),
        ),
        capacity_providers: Some(cluster.capacity_providers.clone()),
        default_capacity_provider_strategy: Some(capacity_strategy::to_wire(&cluster.default_strategy)),
        attachments: include.attachments.then(Vec::new),
        attachments_status: None,
        service_connect_defaults,
    })
}

/// The statistics that DescribeClusters lists, in its order; only Fargate's can be other than 0.
fn statistics(counts: Counts) -> Vec<KeyValuePair> {
    let names = [
        ("runningEC2TasksCount", 0),
        ("runningFargateTasksCount", counts.running),
        ("pendingEC2TasksCount", 0),
        ("pendingFargateTasksCount", counts.pending),
        ("runningExternalTasksCount", 0),
        ("pendingExternalTasksCount", 0),
        ("activeEC2ServiceCount", 0),
        ("activeFargateServiceCount", 0),
        ("drainingEC2ServiceCount", 0),
        ("drainingFargateServiceCount", 0),
        ("activeExternalServiceCount", 0),
        ("drainingExternalServiceCount", 0),
    ];
    names
        .iter()
        .map(|(name, value)| KeyValuePair { name: Some((*name).to_owned()), value: Some(value.to_string()) })
        .collect()
}
