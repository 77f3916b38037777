//! ListTasks.

use std::collections::HashMap;

use aws_api::Error;
use aws_api::ecs::error::{daemon_not_found_exception, service_not_found_exception};
use aws_api::ecs::{ListTasksRequest, ListTasksResponse};
use model::Arn;
use model::assignment::Assignment;
use model::observation::Observation;
use model::task::Task;
use serde::de::DeserializeOwned;
use store::Range;

use super::errors::{internal, invalid};
use super::page::Page;
use super::task_records::TaskRecords;
use super::{Caller, Ecs, identifier, records};
use crate::keys::{ASSIGNMENTS, OBSERVATIONS, TASKS};

/// How many tasks are read at once.
const BATCH: usize = 200;

/// Lists a cluster's tasks whose desired status is RUNNING, or the one asked for.
pub async fn handle(ecs: &Ecs, caller: &Caller, input: ListTasksRequest) -> Result<ListTasksResponse, Error> {
    let cluster = identifier::cluster(caller, input.cluster.as_deref())?;
    records::active_cluster(ecs, caller, &cluster).await?;
    let filter = Filter::parse(&input)?;
    let page = Page::parse(
        caller.scope().cluster_tasks(&cluster),
        &[
            "ListTasks",
            filter.desired,
            filter.family.unwrap_or_default(),
            filter.started_by.unwrap_or_default(),
            input.launch_type.as_deref().unwrap_or_default(),
        ],
        input.next_token.as_deref(),
        input.max_results,
        1..=100,
    )?;
    let mut arns = Vec::new();
    if filter.nothing {
        return Ok(ListTasksResponse { task_arns: Some(arns), next_token: None });
    }
    let mut after = page.after.clone();
    loop {
        let (batch, batch_more) = batch(ecs, page.prefix(), after.as_deref()).await?;
        let count = batch.len();
        for (at, (key, records)) in batch.into_iter().enumerate() {
            if filter.matches(&records) {
                let id = &records.task.id;
                arns.push(Arn::task(&caller.region, &caller.account, &cluster, id).to_string());
            }
            let more = batch_more || at + 1 < count;
            if arns.len() == page.limit {
                return Ok(ListTasksResponse {
                    task_arns: Some(arns),
                    next_token: more.then(|| page.token(&key)),
                });
            }
            after = Some(key);
        }
        if !batch_more {
            return Ok(ListTasksResponse { task_arns: Some(arns), next_token: None });
        }
    }
}

struct Filter<'a> {
    family: Option<&'a str>,
    started_by: Option<&'a str>,
    desired: &'a str,
    /// No task can match.
    nothing: bool,
}

impl<'a> Filter<'a> {
    fn parse(input: &'a ListTasksRequest) -> Result<Self, Error> {
        fn given(text: &Option<String>) -> Option<&str> {
            text.as_deref().filter(|text| !text.is_empty())
        }
        let (family, started_by) = (given(&input.family), given(&input.started_by));
        let (instance, service) = (given(&input.container_instance), given(&input.service_name));
        if started_by.is_some() && (family.is_some() || instance.is_some() || service.is_some()) {
            return Err(invalid(
                "startedBy cannot be combined with family, containerInstance or serviceName.",
            ));
        }
        if service.is_some() && (family.is_some() || instance.is_some()) {
            return Err(invalid("serviceName cannot be combined with family or containerInstance."));
        }
        // There are no services, daemons and container instances, so none can be found.
        if service.is_some() {
            return Err(service_not_found_exception("Service not found."));
        }
        if given(&input.daemon_name).is_some() {
            return Err(daemon_not_found_exception("Daemon not found."));
        }
        if instance.is_some() {
            return Err(invalid("Container instance not found: Fargate tasks run on none."));
        }
        let desired = given(&input.desired_status).unwrap_or("RUNNING");
        let launch = given(&input.launch_type);
        // No task's desired status is ever PENDING, as the API reference says.
        let nothing = desired == "PENDING" || launch.is_some_and(|launch| launch != "FARGATE");
        Ok(Self { family, started_by, desired, nothing })
    }

    fn matches(&self, records: &TaskRecords) -> bool {
        let task = &records.task;
        self.family.is_none_or(|family| task.spec.family == family)
            && self.started_by.is_none_or(|by| task.started_by.as_deref() == Some(by))
            && records.desired().as_str() == self.desired
    }
}

/// Tasks with their records, in key order, and whether there are more.
async fn batch(
    ecs: &Ecs,
    prefix: &str,
    after: Option<&str>,
) -> Result<(Vec<(String, TaskRecords)>, bool), Error> {
    let range = |prefix: String, after: Option<String>| {
        let range = Range::prefix(prefix).limit(BATCH);
        match after {
            Some(after) => range.after(after),
            None => range,
        }
    };
    let found = ecs
        .store
        .range_json::<Task>(range(prefix.to_owned(), after.map(str::to_owned)))
        .await
        .map_err(internal)?;
    let path = |key: &str| key.strip_prefix(TASKS).unwrap_or(key).to_owned();
    // Other records exist only beside an intent, so the first BATCH of them reach at least as far.
    let beside =
        |kind: &str| range(format!("{kind}{}", path(prefix)), after.map(|a| format!("{kind}{}", path(a))));
    let mut assignments = by_path::<Assignment>(ecs, ASSIGNMENTS, beside(ASSIGNMENTS)).await?;
    let mut observations = by_path::<Observation>(ecs, OBSERVATIONS, beside(OBSERVATIONS)).await?;
    let tasks = found.entries.into_iter().map(|(key, task)| {
        let path = path(&key);
        let assignment = assignments.remove(&path);
        let observation = observations.remove(&path);
        (key, TaskRecords { task: task.value, assignment, observation })
    });
    Ok((tasks.collect(), found.more))
}

async fn by_path<T: DeserializeOwned>(
    ecs: &Ecs,
    kind: &str,
    range: Range,
) -> Result<HashMap<String, T>, Error> {
    let found = ecs.store.range_json::<T>(range).await.map_err(internal)?;
    let entries = found.entries.into_iter();
    Ok(entries.map(|(key, record)| (key[kind.len()..].to_owned(), record.value)).collect())
}
