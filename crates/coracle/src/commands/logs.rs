//! `coracle logs`: what a task's containers wrote.

use std::time::Duration;

use anyhow::bail;
use aws_api::ecs::DescribeTaskDefinitionRequest;
use aws_api::ecs::operation::DescribeTaskDefinition;

use super::log_reader::{self, LogReader};
use super::{Context, Output, print, tasks, time_text};

#[derive(Clone, Debug, clap::Args)]
pub struct LogsArgs {
    /// Go on until the task has stopped.
    #[arg(short, long)]
    follow: bool,
    /// Only this container's output.
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Only what is newer: a span (10m, 1h30m) or a time (2026-01-31T12:00:00Z).
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// The cluster's name or ARN; without it, the default cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// The task's id, its beginning, or its ARN.
    task: String,
}

pub async fn main(context: &Context, args: &LogsArgs) -> anyhow::Result<()> {
    let since = match &args.since {
        Some(text) => Some(time_text::parse_since(text, time_text::now())?),
        None => None,
    };
    let client = context.client()?;
    let task_ref = tasks::find(&client, args.cluster.as_deref(), &args.task).await?;
    let task = tasks::get(&client, &task_ref).await?;
    let request = DescribeTaskDefinitionRequest {
        task_definition: task.task_definition_arn.clone().unwrap_or_default(),
        include: None,
    };
    let definition =
        client.call::<DescribeTaskDefinition>(&request).await?.task_definition.unwrap_or_default();
    if let Some(wanted) = &args.container {
        let names: Vec<&str> =
            definition.container_definitions.iter().flatten().filter_map(|c| c.name.as_deref()).collect();
        if !names.contains(&wanted.as_str()) {
            bail!("the task has no container {wanted}; it has {}", names.join(", "));
        }
    }
    let mut streams = log_reader::streams_of(&definition, &task_ref.id);
    streams.retain(|(name, _)| args.container.as_ref().is_none_or(|wanted| wanted == name));
    if streams.is_empty() {
        bail!("no log is kept: the task definition has no awslogs log configuration");
    }
    let (names, streams): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    // Names before lines, when there is more than one.
    let width = if names.len() > 1 { names.iter().map(String::len).max().unwrap_or(0) } else { 0 };
    let mut reader = LogReader::new(streams, since);
    let mut ended = !args.follow;
    let mut pause = SHORTEST;
    loop {
        let events = reader.next(&client).await?;
        if events.is_empty() {
            if ended {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST);
            // What was written before it stopped is read after this.
            ended = tasks::is_stopped(&tasks::get(&client, &task_ref).await?);
            continue;
        }
        pause = SHORTEST;
        let mut text = String::new();
        for event in &events {
            let name = &names[event.stream];
            match context.output {
                Output::Json => text.push_str(&event.json(name).to_string()),
                Output::Text => {
                    if width > 0 {
                        text.push_str(&format!("{name:width$} | "));
                    }
                    text.push_str(event.message.trim_end_matches('\n'));
                }
            }
            text.push('\n');
        }
        print::lines(&text)?;
    }
}

const SHORTEST: Duration = Duration::from_millis(30);
const LONGEST: Duration = Duration::from_millis(500);
