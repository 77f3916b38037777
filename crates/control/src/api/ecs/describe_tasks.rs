//! DescribeTasks.

use aws_api::Error;
use aws_api::ecs::{DescribeTasksRequest, DescribeTasksResponse, Failure};
use model::Arn;

use super::errors::invalid;
use super::{Caller, Ecs, identifier, records, task_records, task_view};

const MAX_TASKS: usize = 100;

/// Describes tasks, also of a cluster that was deleted since.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DescribeTasksRequest,
) -> Result<DescribeTasksResponse, Error> {
    if input.tasks.is_empty() {
        return Err(invalid("Tasks cannot be empty."));
    }
    if input.tasks.len() > MAX_TASKS {
        return Err(invalid(format!("Tasks cannot have more than {MAX_TASKS} elements.")));
    }
    let cluster = identifier::cluster(caller, input.cluster.as_deref())?;
    records::cluster(ecs, caller, &cluster).await?;
    let include_tags = input.include.iter().flatten().any(|field| field == "TAGS");
    let mut named = Vec::new();
    for text in &input.tasks {
        let task = identifier::task(caller, &cluster, text)?;
        if !named.contains(&task) {
            named.push(task);
        }
    }
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    for task in named {
        let found = match &task.id {
            Some(id) => task_records::load(&ecs.store, &caller.scope().task(&cluster, id)).await?,
            None => None,
        };
        match found {
            Some(records) => tasks.push(task_view::view(&records, &ecs.default_subnet, include_tags)?),
            None => {
                let resource = format!("task/{cluster}/{}", task.text);
                failures.push(Failure {
                    arn: Some(Arn::new("ecs", &caller.region, &caller.account, resource).to_string()),
                    reason: Some("MISSING".to_owned()),
                    detail: None,
                });
            }
        }
    }
    Ok(DescribeTasksResponse { tasks: Some(tasks), failures: Some(failures) })
}
