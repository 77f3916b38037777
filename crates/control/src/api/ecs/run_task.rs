//! RunTask.

use aws_api::Error;
use aws_api::ecs::error::{conflict_exception, platform_unknown_exception};
use aws_api::ecs::{ContainerOverride, RunTaskRequest, RunTaskResponse, TaskDefinition as Document};
use model::cluster::{Cluster, Tags};
use model::definition::{DefinitionStatus, TaskDefinition};
use model::snapshot::{SNAPSHOT_TAG, SnapshotSource};
use model::spec::Isolation;
use model::status::DesiredStatus;
use model::task::{Task, TaskNetwork};
use model::{Arn, ClusterName, TaskId, Timestamp};
use store::{Txn, Versioned};

use super::client_token::{self, Record};
use super::compile::{self, Run};
use super::errors::{client, contention, corrupt, invalid};
use super::records::{self, Outcome};
use super::task_records::{self, TaskRecords};
use super::{
    Caller, Ecs, account_settings, capacity_strategy, definition_records, identifier, isolation, overrides,
    tags, task_network, task_view,
};
use crate::keys::TaskPath;
use crate::random;
use crate::snapshots::{self, Asked};

const MAX_COUNT: i32 = 10;
const PLATFORM: &str = "1.4.0";

/// Starts `count` tasks: all or none. With a `clientToken` that was used for the same request before, it
/// answers with the tasks of then.
pub async fn handle(ecs: &Ecs, caller: &Caller, input: RunTaskRequest) -> Result<RunTaskResponse, Error> {
    check_simple(&input)?;
    let cluster = identifier::cluster(caller, input.cluster.as_deref())?;
    let request = match &input.client_token {
        Some(token) => Some((token.as_str(), client_token::digest(&input)?)),
        None => None,
    };
    for _ in 0..records::ATTEMPTS {
        let mut txn = Txn::new();
        let now = ecs.clock.now();
        if let Some((token, digest)) = &request {
            let key = caller.scope().client_token(&cluster, token);
            match records::load::<Record>(&ecs.store, &key).await? {
                Some(found) if !found.value.expired(now) => {
                    return repeated(ecs, caller, &cluster, digest, &found.value).await;
                }
                Some(expired) => txn = txn.expect_revision(key, expired.revision),
                None => txn = txn.expect_absent(key),
            }
        }
        let plan = Plan::make(ecs, caller, &cluster, &input).await?;
        let tasks = plan.tasks(caller, &input, now)?;
        txn = plan.guard(caller, txn);
        for task in &tasks {
            let path = TaskPath::of_task(task);
            txn = txn.expect_absent(path.intent()).put_json(path.intent(), task).put(path.pending(), "");
        }
        if let Some((token, digest)) = &request {
            let record = Record {
                request: digest.clone(),
                tasks: tasks.iter().map(|task| task.id.clone()).collect(),
                created_at: now,
            };
            txn = txn.put_json(caller.scope().client_token(&cluster, token), &record);
        }
        if records::commit(&ecs.store, txn).await? == Outcome::Committed {
            ecs.wake.notify_one();
            let records =
                tasks.into_iter().map(|task| TaskRecords { task, assignment: None, observation: None });
            return answer(ecs, records);
        }
    }
    Err(contention())
}

fn answer(ecs: &Ecs, tasks: impl Iterator<Item = TaskRecords>) -> Result<RunTaskResponse, Error> {
    let views = tasks.map(|records| task_view::view(&records, &ecs.default_subnet, true));
    Ok(RunTaskResponse { tasks: Some(views.collect::<Result<_, _>>()?), failures: Some(Vec::new()) })
}

async fn repeated(
    ecs: &Ecs,
    caller: &Caller,
    cluster: &ClusterName,
    digest: &str,
    record: &Record,
) -> Result<RunTaskResponse, Error> {
    if record.request != digest {
        let arn = |task: &TaskId| Arn::task(&caller.region, &caller.account, cluster, task).to_string();
        let arns: Vec<String> = record.tasks.iter().map(arn).collect();
        return Err(conflict_exception(
            "The provided clientToken is already in use with a different RunTask request.",
        )
        .with_field("resourceIds", arns));
    }
    let mut tasks = Vec::new();
    for task in &record.tasks {
        tasks.extend(task_records::load(&ecs.store, &caller.scope().task(cluster, task)).await?);
    }
    answer(ecs, tasks.into_iter())
}

/// What needs nothing but the request.
fn check_simple(input: &RunTaskRequest) -> Result<(), Error> {
    if !(1..=MAX_COUNT).contains(&input.count.unwrap_or(1)) {
        return Err(invalid(format!("count must be between 1 and {MAX_COUNT}.")));
    }
    if let Some(token) = &input.client_token {
        client_token::check(token)?;
    }
    for (what, text, most) in [("startedBy", &input.started_by, 128), ("group", &input.group, 255)] {
        if text.as_ref().is_some_and(|text| text.chars().count() > most || text.chars().any(char::is_control))
        {
            return Err(invalid(format!(
                "{what} can have up to {most} characters, and no control characters."
            )));
        }
    }
    if input.group.as_deref().is_some_and(|group| group.starts_with("service:")) {
        return Err(invalid("The task group prefix 'service:' is reserved for services."));
    }
    if let Some(launch) = input.launch_type.as_deref() {
        if input.capacity_provider_strategy.as_ref().is_some_and(|strategy| !strategy.is_empty()) {
            return Err(invalid(
                "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try \
                 again.",
            ));
        }
        match launch {
            "FARGATE" => {}
            // Coracle has no container instances, and says so in ECS's words.
            "EC2" | "EXTERNAL" => return Err(invalid("No Container Instances were found in your cluster.")),
            _ => return Err(invalid("launch type should be one of [EC2,FARGATE,EXTERNAL]")),
        }
    }
    if input.placement_constraints.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(invalid("Placement constraints are not supported with FARGATE launch type."));
    }
    if input.placement_strategy.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(invalid("Placement strategies are not supported with FARGATE launch type."));
    }
    if input.volume_configurations.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(invalid("Coracle does not serve volumeConfigurations (Amazon EBS) yet."));
    }
    if input.propagate_tags.as_deref() == Some("SERVICE") {
        return Err(invalid("RunTask can propagate tags from the TASK_DEFINITION only."));
    }
    match input.platform_version.as_deref() {
        None | Some("" | "LATEST" | PLATFORM) => Ok(()),
        Some(other) => {
            Err(platform_unknown_exception(format!("The platform version '{other}' does not exist.")))
        }
    }
}

/// What the request means against the records as they are.
struct Plan {
    cluster: Versioned<Cluster>,
    definition: Versioned<TaskDefinition>,
    /// With the overrides applied.
    document: Document,
    overrides: serde_json::Value,
    /// The capacity provider of each task, if they come by one.
    providers: Vec<Option<String>>,
    network: TaskNetwork,
    tags: Tags,
    isolation: Isolation,
    snapshot: Option<SnapshotSource>,
    log_mode: String,
}

impl Plan {
    async fn make(
        ecs: &Ecs,
        caller: &Caller,
        cluster: &ClusterName,
        input: &RunTaskRequest,
    ) -> Result<Self, Error> {
        let cluster = records::active_cluster(ecs, caller, cluster).await?;
        let definition = definition(ecs, caller, &input.task_definition).await?;
        let registered = definition_records::document(&definition.value)?;
        let tags = task_tags(&cluster.value, &definition.value, input)?;
        let default =
            if tags.contains_key(SNAPSHOT_TAG) { Isolation::Microvm } else { ecs.default_isolation };
        let isolation = isolation::chosen([&tags, &definition.value.tags], default)?;
        let snapshot = snapshot(ecs, caller, &tags, &definition.value, isolation, input).await?;
        definition_records::compatible(&registered, isolation)?;
        let document = match &input.overrides {
            Some(given) => overrides::apply(registered.clone(), given)?,
            None => registered.clone(),
        };
        if input.enable_execute_command == Some(true) && document.task_role_arn.is_none() {
            return Err(invalid(
                "The task couldn't be started because a valid taskRoleArn is not being used. Specify a valid task role \
                 in your task definition and try again.",
            ));
        }
        Ok(Self {
            overrides: serde_json::to_value(overrides::shown(&registered, input.overrides.as_ref()))
                .map_err(|e| corrupt("overrides", &e))?,
            document,
            providers: providers(&cluster.value, input)?,
            network: task_network::checked(ecs, input.network_configuration.as_ref())?,
            isolation,
            snapshot,
            log_mode: account_settings::effective(ecs, caller, "defaultLogDriverMode")
                .await?
                .unwrap_or_default(),
            tags,
            cluster,
            definition,
        })
    }

    /// The cluster and the definition are as they were read.
    fn guard(&self, caller: &Caller, txn: Txn) -> Txn {
        let scope = caller.scope();
        let definition = &self.definition.value;
        let txn = match &self.snapshot {
            Some(snapshot) => txn.expect_exists(scope.snapshot(&snapshot.id)),
            None => txn,
        };
        txn.expect_revision(scope.cluster(&self.cluster.value.name), self.cluster.revision).expect_revision(
            scope.definition(&definition.family, definition.revision),
            self.definition.revision,
        )
    }

    fn tasks(&self, caller: &Caller, input: &RunTaskRequest, now: Timestamp) -> Result<Vec<Task>, Error> {
        let definition = &self.definition.value;
        let task = |provider: &Option<String>| {
            let id = random::task_id();
            let run = Run {
                task: &id,
                family: &definition.family,
                revision: definition.revision,
                isolation: self.isolation,
                snapshot: self.snapshot.as_ref(),
                log_mode: &self.log_mode,
            };
            Ok(Task {
                spec: compile::compile(&self.document, &run)?,
                id,
                account: caller.account.clone(),
                region: caller.region.clone(),
                cluster: self.cluster.value.name.clone(),
                desired: DesiredStatus::Running,
                created_at: now,
                stop: None,
                network: self.network.clone(),
                capacity_provider: provider.clone(),
                launch_type: input.launch_type.clone(),
                platform_version: PLATFORM.to_owned(),
                group: match input.group.as_deref().filter(|group| !group.is_empty()) {
                    Some(group) => group.to_owned(),
                    None => format!("family:{}", definition.family),
                },
                started_by: input.started_by.clone().filter(|by| !by.is_empty()),
                client_token: input.client_token.clone(),
                enable_execute_command: input.enable_execute_command.unwrap_or(false),
                overrides: self.overrides.clone(),
                tags: self.tags.clone(),
            })
        };
        self.providers.iter().map(task).collect()
    }
}

async fn definition(ecs: &Ecs, caller: &Caller, text: &str) -> Result<Versioned<TaskDefinition>, Error> {
    let not_found = || client("TaskDefinition not found.");
    let named = identifier::definition(caller, text)?.ok_or_else(not_found)?;
    let found = definition_records::find(ecs, caller, &named).await?.ok_or_else(not_found)?;
    match found.value.status {
        DefinitionStatus::Active => Ok(found),
        DefinitionStatus::Inactive | DefinitionStatus::DeleteInProgress => {
            Err(invalid("TaskDefinition is inactive"))
        }
    }
}

/// Without launch type and strategy the cluster's default strategy decides; without that the tasks are
/// Fargate's, as there is nothing else. (AWS would look for EC2 instances.)
fn providers(cluster: &Cluster, input: &RunTaskRequest) -> Result<Vec<Option<String>>, Error> {
    let count = usize::try_from(input.count.unwrap_or(1)).unwrap_or(1);
    let strategy = match &input.capacity_provider_strategy {
        Some(items) if !items.is_empty() => capacity_strategy::checked(items, &cluster.capacity_providers)?,
        _ if input.launch_type.is_some() => Vec::new(),
        _ => cluster.default_strategy.clone(),
    };
    if strategy.is_empty() {
        return Ok(vec![None; count]);
    }
    Ok(capacity_strategy::distribute(&strategy, count).into_iter().map(Some).collect())
}

fn task_tags(cluster: &Cluster, definition: &TaskDefinition, input: &RunTaskRequest) -> Result<Tags, Error> {
    let mut all = Tags::new();
    if input.propagate_tags.as_deref() == Some("TASK_DEFINITION") {
        all.clone_from(&definition.tags);
    }
    tags::add(&mut all, &tags::checked(input.tags.as_deref())?)?;
    if input.enable_ecs_managed_tags == Some(true) {
        all.insert("aws:ecs:clusterName".to_owned(), cluster.name.to_string());
    }
    Ok(all)
}

/// Where the tasks begin, if the request's tags name a snapshot.
async fn snapshot(
    ecs: &Ecs,
    caller: &Caller,
    tags: &Tags,
    definition: &TaskDefinition,
    isolation: Isolation,
    input: &RunTaskRequest,
) -> Result<Option<SnapshotSource>, Error> {
    let Some(id) = tags.get(SNAPSHOT_TAG) else { return Ok(None) };
    let asked = Asked {
        id,
        family: &definition.family,
        revision: definition.revision,
        has_overrides: input.overrides.as_ref().is_some_and(|given| {
            let containers = given.container_overrides.as_deref().unwrap_or_default();
            let says_something = |one: &ContainerOverride| {
                let silent = ContainerOverride { name: one.name.clone(), ..ContainerOverride::default() };
                *one != silent
            };
            given.cpu.is_some()
                || given.memory.is_some()
                || given.ephemeral_storage.is_some()
                || containers.iter().any(says_something)
        }),
        isolation,
    };
    snapshots::source(&ecs.store, caller, &asked, invalid, super::errors::internal).await.map(Some)
}
