//! Resources with tags, by their ARN.

use aws_api::Error;
use model::cluster::{Cluster, ClusterStatus, Tags};
use model::definition::TaskDefinition;
use model::task::Task;

use super::errors::{cluster_inactive, cluster_not_found, definition_not_found, invalid, task_not_found};
use super::identifier::{self, DefinitionRef};
use super::{Caller, Ecs, records};

/// Where a resource's record is.
enum Target {
    Cluster(String),
    Definition(String),
    Task(String),
}

fn target(caller: &Caller, text: &str) -> Result<Target, Error> {
    let no_arn =
        || invalid("Invalid resource ARN: it must be that of a cluster, a task or a task definition.");
    if !text.starts_with("arn:") {
        return Err(no_arn());
    }
    let arn = identifier::own_arn(caller, text)?;
    let scope = caller.scope();
    match arn.resource.split_once('/') {
        Some(("cluster", _)) => {
            let name = identifier::cluster(caller, Some(text))?;
            Ok(Target::Cluster(scope.cluster(&name)))
        }
        Some(("task-definition", _)) => match identifier::definition(caller, text)? {
            Some(DefinitionRef { family, revision: Some(revision) }) => {
                Ok(Target::Definition(scope.definition(&family, revision)))
            }
            _ => Err(definition_not_found()),
        },
        Some(("task", rest)) => {
            let (cluster, id) = rest.split_once('/').ok_or_else(no_arn)?;
            let cluster = identifier::cluster(caller, Some(cluster))?;
            let id = identifier::task(caller, &cluster, id)?.id.ok_or_else(task_not_found)?;
            Ok(Target::Task(scope.task(&cluster, &id).intent()))
        }
        _ => Err(no_arn()),
    }
}

/// The tags of the resource with that ARN.
pub(super) async fn tags(ecs: &Ecs, caller: &Caller, arn: &str) -> Result<Tags, Error> {
    match target(caller, arn)? {
        Target::Cluster(key) => {
            let cluster = records::load::<Cluster>(&ecs.store, &key).await?.ok_or_else(cluster_not_found)?;
            Ok(cluster.value.tags)
        }
        Target::Definition(key) => {
            let found =
                records::load::<TaskDefinition>(&ecs.store, &key).await?.ok_or_else(definition_not_found)?;
            Ok(found.value.tags)
        }
        Target::Task(key) => {
            Ok(records::load::<Task>(&ecs.store, &key).await?.ok_or_else(task_not_found)?.value.tags)
        }
    }
}

/// Changes the tags of the resource with that ARN.
pub(super) async fn update<F>(ecs: &Ecs, caller: &Caller, arn: &str, mut change: F) -> Result<(), Error>
where
    F: FnMut(&mut Tags) -> Result<(), Error>,
{
    match target(caller, arn)? {
        Target::Cluster(key) => {
            let change = |cluster: &mut Cluster| match cluster.status {
                ClusterStatus::Active => change(&mut cluster.tags),
                ClusterStatus::Inactive => Err(cluster_inactive()),
            };
            records::update(&ecs.store, &key, change).await?.ok_or_else(cluster_not_found)?;
        }
        Target::Definition(key) => {
            let change = |definition: &mut TaskDefinition| change(&mut definition.tags);
            records::update(&ecs.store, &key, change).await?.ok_or_else(definition_not_found)?;
        }
        Target::Task(key) => {
            let change = |task: &mut Task| change(&mut task.tags);
            records::update(&ecs.store, &key, change).await?.ok_or_else(task_not_found)?;
        }
    }
    Ok(())
}
