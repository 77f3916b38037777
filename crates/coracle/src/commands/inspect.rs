//! `coracle inspect`: everything the API says of a task, always as JSON.

use aws_api::ecs::DescribeTaskDefinitionRequest;
use aws_api::ecs::operation::DescribeTaskDefinition;
use serde_json::json;

use super::{Context, print, tasks};

#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// The cluster's name or ARN; without it, the default cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// The task's id, its beginning, or its ARN.
    task: String,
}

pub async fn main(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let task = tasks::find(&client, args.cluster.as_deref(), &args.task).await?;
    let task = tasks::get(&client, &task).await?;
    let request = DescribeTaskDefinitionRequest {
        task_definition: task.task_definition_arn.clone().unwrap_or_default(),
        include: None,
    };
    let definition = client.call::<DescribeTaskDefinition>(&request).await?.task_definition;
    print::json(&json!({"task": task, "taskDefinition": definition}))
}
