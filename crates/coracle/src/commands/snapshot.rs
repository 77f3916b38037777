//! `coracle snapshot`, `coracle snapshots`, `coracle restore`: tasks written down while they run, and
//! tasks that go on from there.

use std::time::Duration;

use anyhow::bail;
use aws_api::ecs::operation::RunTask;
use aws_api::ecs::{RunTaskRequest, Tag};
use model::snapshot::{SNAPSHOT_TAG, SnapshotStatus};
use serde::{Deserialize, Serialize};

use super::{Context, Output, fargate_task, print, tasks, time_text};
use crate::client::Client;

/// Who started these tasks, as ListTasks filters them.
const STARTED_BY: &str = "coracle-restore";

#[derive(Clone, Debug, clap::Args)]
pub struct SnapshotArgs {
    /// Do not wait until the snapshot is READY.
    #[arg(long)]
    no_wait: bool,
    /// The cluster's name or ARN; without it, the default cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// The task's id, its beginning, or its ARN.
    task: String,
}

#[derive(Clone, Debug, clap::Args)]
pub struct SnapshotsArgs {
    #[command(subcommand)]
    command: Option<SnapshotsCommand>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum SnapshotsCommand {
    /// Delete snapshots; tasks that were started from them go on
    Rm {
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub struct RestoreArgs {
    /// How many tasks to start.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10))]
    count: i32,
    /// Where they run; without it, in the default cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// The snapshot's id.
    snapshot: String,
}

/// A snapshot as the server shows it (`control::snapshots::View`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    snapshot_id: String,
    status: SnapshotStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    task_arn: String,
    task_definition_arn: String,
    host_id: String,
    created_at: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_at: Option<f64>,
    paused_ms: u64,
    memory_bytes: u64,
    disk_bytes: u64,
}

/// `coracle snapshot`.
pub async fn make(context: &Context, args: &SnapshotArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let task = tasks::find(&client, args.cluster.as_deref(), &args.task).await?;
    let cluster = task.cluster.as_deref().map_or("default", tasks::id_of);
    let path = format!("/_coracle/tasks/{}/snapshots?cluster={cluster}", task.id);
    let mut shown: Shown = client.post_for(&path).await?;
    if !args.no_wait {
        shown = made(&client, shown).await?;
    }
    if context.output == Output::Json {
        print::json(&shown)?;
    }
    if let Some(reason) = shown.reason.filter(|_| shown.status == SnapshotStatus::Failed) {
        bail!("the snapshot {} failed: {}", shown.snapshot_id, print::printable(&reason));
    }
    if context.output == Output::Text {
        print::line(&shown.snapshot_id)?;
    }
    Ok(())
}

async fn made(client: &Client, mut shown: Shown) -> anyhow::Result<Shown> {
    let mut pause = Duration::from_millis(20);
    while shown.status == SnapshotStatus::Pending {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
        shown = client.get(&format!("/_coracle/snapshots/{}", shown.snapshot_id)).await?;
    }
    Ok(shown)
}

/// `coracle snapshots`.
pub async fn list(context: &Context, args: &SnapshotsArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    if let Some(SnapshotsCommand::Rm { snapshots }) = &args.command {
        for id in snapshots {
            // It becomes part of a path.
            let id = model::SnapshotId::parse(id.as_str())?;
            client.delete(&format!("/_coracle/snapshots/{id}")).await?;
            if context.output == Output::Text {
                print::line(&id)?;
            }
        }
        return Ok(());
    }
    let found: Vec<Shown> = client.get("/_coracle/snapshots").await?;
    if context.output == Output::Json {
        return print::json(&found);
    }
    let now = time_text::now();
    let rows = found.iter().map(|shown| row(shown, now)).collect();
    print::table(&["SNAPSHOT", "STATUS", "TASK", "FAMILY:REV", "MEMORY", "DISK", "AGE", "REASON"], rows)
}

fn row(shown: &Shown, now: i64) -> Vec<String> {
    vec![
        shown.snapshot_id.clone(),
        shown.status.as_str().to_owned(),
        tasks::short(&shown.task_arn).to_owned(),
        tasks::id_of(&shown.task_definition_arn).to_owned(),
        indicatif::BinaryBytes(shown.memory_bytes).to_string(),
        indicatif::BinaryBytes(shown.disk_bytes).to_string(),
        time_text::age(now.saturating_sub((shown.created_at * 1000.0) as i64)),
        shown.reason.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// `coracle restore`: RunTask with a tag, which any client can send.
pub async fn restore(context: &Context, args: &RestoreArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let id = model::SnapshotId::parse(args.snapshot.as_str())?;
    let shown: Shown = client.get(&format!("/_coracle/snapshots/{id}")).await?;
    let request = RunTaskRequest {
        cluster: args.cluster.clone(),
        count: Some(args.count),
        tags: Some(vec![Tag { key: Some(SNAPSHOT_TAG.to_owned()), value: Some(id.to_string()) }]),
        ..fargate_task::request(&client.server, STARTED_BY, shown.task_definition_arn)
    };
    let started = client.call::<RunTask>(&request).await?.tasks.unwrap_or_default();
    if context.output == Output::Json {
        return print::json(&started);
    }
    for task in &started {
        print::line(tasks::short(task.task_arn.as_deref().unwrap_or_default()))?;
    }
    Ok(())
}
