//! `coracle stop`: ends tasks.

use aws_api::ecs::StopTaskRequest;
use aws_api::ecs::operation::StopTask;

use super::{Context, Output, print, tasks};

#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    /// Kept with the task as the reason.
    #[arg(long)]
    reason: Option<String>,
    /// Do not wait until the tasks have stopped.
    #[arg(long)]
    no_wait: bool,
    /// The cluster's name or ARN; without it, the default cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// The tasks' ids, their beginnings, or their ARNs.
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
}

pub async fn main(context: &Context, args: &StopArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    // All names first: a mistake in the last stops none.
    let mut found = Vec::new();
    for task in &args.tasks {
        found.push(tasks::find(&client, args.cluster.as_deref(), task).await?);
    }
    let mut stopped = Vec::new();
    for task in &found {
        let request = StopTaskRequest {
            cluster: task.cluster.clone(),
            task: task.id.clone(),
            reason: args.reason.clone().or_else(|| Some("Stopped with coracle stop".to_owned())),
        };
        stopped.push(client.call::<StopTask>(&request).await?.task.unwrap_or_default());
    }
    for (task, as_answered) in found.iter().zip(&mut stopped) {
        if !args.no_wait {
            *as_answered = tasks::stopped(&client, task).await?;
        }
        if context.output == Output::Text {
            print::line(tasks::short(&task.id))?;
        }
    }
    if context.output == Output::Json {
        print::json(&stopped)?;
    }
    Ok(())
}
