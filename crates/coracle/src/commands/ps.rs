//! `coracle ps`: tasks, the newest first.

use aws_api::ecs::Task;

use super::{Context, Output, print, tasks, time_text};

#[derive(Clone, Debug, clap::Args)]
pub struct PsArgs {
    /// Stopped tasks, too (they are kept for an hour).
    #[arg(short, long)]
    all: bool,
    /// The cluster's name or ARN; without it, the default cluster.
    #[arg(long)]
    cluster: Option<String>,
}

pub async fn main(context: &Context, args: &PsArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let cluster = args.cluster.as_deref();
    let mut arns = tasks::list(&client, cluster, "RUNNING").await?;
    // A task that is being stopped has the desired status STOPPED and still runs.
    arns.extend(tasks::list(&client, cluster, "STOPPED").await?);
    let mut found = tasks::describe(&client, cluster, &arns).await?;
    // Between the two lists a task may have changed sides.
    found.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.task_arn.cmp(&b.task_arn)));
    found.dedup_by(|a, b| a.task_arn == b.task_arn);
    found.retain(|task| args.all || !tasks::is_stopped(task));
    if context.output == Output::Json {
        return print::json(&found);
    }
    let now = time_text::now();
    let rows = found.iter().map(|task| row(task, now)).collect();
    print::table(&["TASK", "FAMILY:REV", "STATUS", "HEALTH", "ADDRESS", "AGE", "IMAGE"], rows)
}

fn row(task: &Task, now: i64) -> Vec<String> {
    let containers = task.containers.as_deref().unwrap_or_default();
    let images: Vec<&str> = containers.iter().filter_map(|c| c.image.as_deref()).collect();
    let address = if tasks::is_stopped(task) { None } else { tasks::address(task) };
    let health = task.health_status.as_deref().filter(|health| *health != "UNKNOWN");
    vec![
        tasks::short(task.task_arn.as_deref().unwrap_or_default()).to_owned(),
        tasks::id_of(task.task_definition_arn.as_deref().unwrap_or_default()).to_owned(),
        status(task),
        health.unwrap_or("-").to_owned(),
        address.unwrap_or("-").to_owned(),
        task.created_at.map_or("-".to_owned(), |at| time_text::age(now - at.as_millis())),
        images.join(", "),
    ]
}

/// With the exit codes of a task that stopped.
fn status(task: &Task) -> String {
    let status = task.last_status.clone().unwrap_or_default();
    let containers = task.containers.as_deref().unwrap_or_default();
    let codes: Vec<String> = containers.iter().filter_map(|c| Some(c.exit_code?.to_string())).collect();
    if tasks::is_stopped(task) && !codes.is_empty() {
        format!("{status} ({})", codes.join(", "))
    } else {
        status
    }
}
