//! Amazon ECS: one file per operation, and the rules that several share.
//!
//! An operation checks the whole request, then changes records in one transaction, then answers. A bad
//! request changes nothing. What needs more than a record's change (running a task, stopping one) is
//! left to the reconciler, which is woken.

use std::sync::Arc;

use aws_api::{Error, Routed};
use store::Store;
use tokio::sync::Notify;

use super::answer::serve;
use super::{Answer, Caller};
use crate::clock::Clock;

mod account_settings;
mod capacity_strategy;
mod client_token;
mod cluster_settings;
mod cluster_view;
mod compile;
mod default_cluster;
mod definition_document;
mod definition_records;
mod errors;
mod fargate_rules;
mod fargate_size;
mod identifier;
mod isolation;
mod log_options;
mod overrides;
mod page;
mod records;
mod requires_attributes;
mod sweep;
mod tag_target;
mod tags;
mod task_network;
mod task_records;
mod task_view;
mod validate_container;
mod validate_definition;

mod create_cluster;
mod delete_account_setting;
mod delete_cluster;
mod delete_task_definitions;
mod deregister_task_definition;
mod describe_capacity_providers;
mod describe_clusters;
mod describe_task_definition;
mod describe_tasks;
mod list_account_settings;
mod list_clusters;
mod list_tags_for_resource;
mod list_task_definition_families;
mod list_task_definitions;
mod list_tasks;
mod put_account_setting;
mod put_account_setting_default;
mod put_cluster_capacity_providers;
mod register_task_definition;
pub(crate) mod run_task;
mod stop_task;
mod tag_resource;
mod untag_resource;
mod update_cluster;
mod update_cluster_settings;

#[cfg(test)]
pub(crate) mod tests;

pub use default_cluster::default_cluster;
pub use stop_task::stop_all;
pub use sweep::sweep;

/// What ECS handlers work with.
#[derive(Clone)]
pub struct Ecs {
    pub store: Store,
    pub clock: Clock,
    /// Wakes the reconciler after a commit.
    pub wake: Arc<Notify>,
    /// The network that exists from first start; other subnets come with the VPC API.
    pub default_subnet: model::network::Subnet,
    pub default_security_group: model::SecurityGroupId,
    /// What isolates tasks that do not say.
    pub default_isolation: model::spec::Isolation,
}

/// Serves a request that was routed to ECS and whose signature was verified.
///
/// # Errors
/// Those of the operation; SerializationException and InvalidParameterException for a body that its
/// model does not allow; UnknownOperationException for an operation that is not served.
pub async fn dispatch(ecs: &Ecs, caller: &Caller, routed: &Routed, body: &[u8]) -> Result<Answer, Error> {
    serve!(aws_api::ecs::operation, ecs, caller, routed, body, {
        CreateCluster => create_cluster,
        DeleteAccountSetting => delete_account_setting,
        DeleteCluster => delete_cluster,
        DeleteTaskDefinitions => delete_task_definitions,
        DeregisterTaskDefinition => deregister_task_definition,
        DescribeCapacityProviders => describe_capacity_providers,
        DescribeClusters => describe_clusters,
        DescribeTaskDefinition => describe_task_definition,
        DescribeTasks => describe_tasks,
        ListAccountSettings => list_account_settings,
        ListClusters => list_clusters,
        ListTagsForResource => list_tags_for_resource,
        ListTaskDefinitionFamilies => list_task_definition_families,
        ListTaskDefinitions => list_task_definitions,
        ListTasks => list_tasks,
        PutAccountSetting => put_account_setting,
        PutAccountSettingDefault => put_account_setting_default,
        PutClusterCapacityProviders => put_cluster_capacity_providers,
        RegisterTaskDefinition => register_task_definition,
        RunTask => run_task,
        StopTask => stop_task,
        TagResource => tag_resource,
        UntagResource => untag_resource,
        UpdateCluster => update_cluster,
        UpdateClusterSettings => update_cluster_settings,
    })
}
