//! `coracle run`: one container as a task, its output here, its exit code passed on.

mod port_proxy;
mod pulls;
mod request;
mod status_line;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aws_api::ecs::operation::{RegisterTaskDefinition, RunTask, StopTask};
use aws_api::ecs::{StopTaskRequest, Task};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::port_proxy::{PortPair, PortProxy};
use self::pulls::Pulls;
use self::status_line::StatusLine;
use super::log_reader::LogReader;
use super::print::{self, OutputClosed};
use super::tasks::{self, TaskRef};
use super::{Context, Output};
use crate::client::Client;

#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// CPU units: 1024 are one CPU.
    #[arg(long, default_value = "256")]
    cpu: String,
    /// Memory in MiB, of what Fargate offers with these CPU units.
    #[arg(long, default_value = "512")]
    memory: String,
    /// An environment variable; NAME alone takes its value from here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Leads a port of 127.0.0.1 to the task's while this command runs.
    #[arg(short, long, value_name = "HOST_PORT:CONTAINER_PORT", conflicts_with = "detach")]
    publish: Vec<PortPair>,
    /// The name of the container and of the task definition's family.
    #[arg(long)]
    name: Option<String>,
    /// The cluster's name or ARN; without it, the default cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Allow the container all that its kernel can do; for tasks with a kernel of their own (microVMs).
    #[arg(long)]
    privileged: bool,
    /// Print the task's id and leave it running.
    #[arg(short, long)]
    detach: bool,
    /// Say nothing of the task's progress.
    #[arg(short, long)]
    quiet: bool,
    /// The image, such as localhost:4566/web:1.
    image: String,
    /// What to run in it, instead of the image's own command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Coracle failed, or the task did not get as far as an exit code (as with `docker run`).
const DID_NOT_RUN: u8 = 125;

/// Left by a second Ctrl-C: 128 and the signal's number, as shells have it.
const LEFT: u8 = 130;

/// How long a server may be away (it is being restarted, say) before this command gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pauses between two looks: the first after something happened, and the longest.
const SHORTEST: Duration = Duration::from_millis(15);
const LONGEST_STARTING: Duration = Duration::from_millis(100);
const LONGEST_RUNNING: Duration = Duration::from_millis(400);

/// Pages of output that are written before the next look at the task.
const PAGES: usize = 50;

pub async fn main(context: &Context, args: &RunArgs) -> anyhow::Result<ExitCode> {
    match run(context, args).await {
        Err(error) if !error.is::<OutputClosed>() => {
            print::note(format_args!("coracle: {error:#}"));
            Ok(ExitCode::from(DID_NOT_RUN))
        }
        outcome => outcome,
    }
}

async fn run(context: &Context, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen()?;
    let client = context.client()?;
    // Ports first: that one is in use should be known before anything runs.
    let mut proxies = Vec::new();
    for pair in &args.publish {
        proxies.push(PortProxy::bind(*pair).await?);
    }
    let task = start(&client, args).await?;
    let arn = task.task_arn.clone().unwrap_or_default();
    if args.detach {
        match context.output {
            Output::Text => print::line(tasks::id_of(&arn))?,
            Output::Json => print::json(&json!({"taskArn": arn}))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (address, receiver) = watch::channel(None);
    let mut serving = JoinSet::new();
    for proxy in proxies {
        if !args.quiet {
            print::note(format_args!(
                "{} leads to port {} of the task",
                proxy.local()?,
                proxy.container_port
            ));
        }
        serving.spawn(proxy.serve(receiver.clone()));
    }
    let task_ref = TaskRef { cluster: task.cluster_arn.clone(), id: tasks::id_of(&arn).to_owned() };
    let attached = Attached {
        client: &client,
        task: &task_ref,
        output: context.output,
        container: request::container(args),
        logs: LogReader::new(vec![request::stream(args, &task_ref.id)], None),
        address,
        status: StatusLine::new(args.quiet),
        pulls: Pulls::default(),
    };
    tokio::select! {
        code = attached.follow(task) => code,
        code = interrupted(&client, &task_ref, signals) => code,
    }
}

async fn start(client: &Client, args: &RunArgs) -> anyhow::Result<Task> {
    let definition = request::definition(args, &client.server, |name| std::env::var(name).ok())?;
    let registered = client.call::<RegisterTaskDefinition>(&definition).await?.task_definition;
    let definition = registered.and_then(|definition| definition.task_definition_arn);
    let definition = definition.context("the server registered the task definition without an ARN")?;
    let answer = client.call::<RunTask>(&request::task(args, &client.server, definition)).await?;
    if let Some(failure) = answer.failures.iter().flatten().next() {
        let reason = failure.reason.as_deref().unwrap_or("no reason given");
        let detail = failure.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        bail!("the task cannot be placed: {reason}{detail}");
    }
    answer.tasks.and_then(|tasks| tasks.into_iter().next()).context("the server started no task")
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Stops the task at the first signal, and leaves at the second.
async fn interrupted(client: &Client, task: &TaskRef, mut signals: Signals) -> anyhow::Result<ExitCode> {
    signals.next().await;
    print::note(format_args!("stopping task {}; once more leaves it to itself", tasks::short(&task.id)));
    let stop = async {
        stop(client, task, "Interrupted").await?;
        // The other side of the race ends this one when the task has stopped.
        std::future::pending().await
    };
    tokio::select! {
        outcome = stop => outcome,
        () = signals.next() => Ok(ExitCode::from(LEFT)),
    }
}

async fn stop(client: &Client, task: &TaskRef, reason: &str) -> anyhow::Result<()> {
    let request = StopTaskRequest {
        cluster: task.cluster.clone(),
        task: task.id.clone(),
        reason: Some(reason.to_owned()),
    };
    patiently(async || client.call::<StopTask>(&request).await.map(drop)).await
}

/// Repeats a call as long as the server is away.
async fn patiently<T>(mut call: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut away_since = None;
    loop {
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let refused = error.downcast_ref::<aws_api::Error>().is_some_and(|error| error.http_status < 500);
        let since = *away_since.get_or_insert_with(Instant::now);
        if refused || since.elapsed() > PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(LONGEST_RUNNING).await;
    }
}

/// This command while its task runs.
struct Attached<'c> {
    client: &'c Client,
    task: &'c TaskRef,
    output: Output,
    container: &'c str,
    logs: LogReader,
    /// Where the ports lead to.
    address: watch::Sender<Option<Ipv4Addr>>,
    status: StatusLine,
    pulls: Pulls,
}

impl Attached<'_> {
    async fn follow(mut self, mut task: Task) -> anyhow::Result<ExitCode> {
        let mut pause = SHORTEST;
        loop {
            // What there is to read after the task was seen STOPPED is the rest.
            let stopped = tasks::is_stopped(&task);
            let wrote = self.write_output(if stopped { usize::MAX } else { PAGES }).await?;
            if stopped {
                self.status.clear();
                if let Output::Json = self.output {
                    print::line(end_of(&task))?;
                }
                return Ok(outcome(&task));
            }
            let now = patiently(async || tasks::get(self.client, self.task).await).await?;
            let running = now.last_status.as_deref() == Some("RUNNING");
            let moved = wrote || now.last_status != task.last_status;
            task = now;
            if running && let Some(address) = tasks::address(&task).and_then(|address| address.parse().ok()) {
                self.address.send_replace(Some(address));
            }
            self.status.show(&task);
            if self.status.is_pulling()
                && let Some(progress) = self.pulls.look(self.client, self.task).await
            {
                self.status.pulling(&self.task.id, progress);
            }
            let longest = if running { LONGEST_RUNNING } else { LONGEST_STARTING };
            pause = if moved { SHORTEST } else { (pause * 3 / 2).min(longest) };
            if !tasks::is_stopped(&task) {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Writes what is new, and says whether there was anything.
    async fn write_output(&mut self, pages: usize) -> anyhow::Result<bool> {
        for page in 0..pages {
            let events = patiently(async || self.logs.next(self.client).await).await?;
            if events.is_empty() {
                return Ok(page > 0);
            }
            self.status.clear();
            let mut text = String::new();
            for event in &events {
                match self.output {
                    Output::Text => text.push_str(event.message.trim_end_matches('\n')),
                    Output::Json => text.push_str(&event.json(self.container).to_string()),
                }
                text.push('\n');
            }
            if let Err(error) = print::lines(&text) {
                // Without a reader it is as if it had been interrupted.
                stop(self.client, self.task, "Nobody reads the output").await?;
                return Err(error);
            }
        }
        Ok(true)
    }
}

/// For programs: how the task ended, after its output. There is no `exitCode` where nothing ran.
fn end_of(task: &Task) -> serde_json::Value {
    let container = task.containers.iter().flatten().next();
    let mut end = json!({
        "taskArn": task.task_arn,
        "stopCode": task.stop_code,
        "stoppedReason": task.stopped_reason,
    });
    if let Some(code) = container.and_then(|container| container.exit_code) {
        end["exitCode"] = code.into();
    }
    if let Some(reason) = container.and_then(|container| container.reason.as_deref()) {
        end["reason"] = reason.into();
    }
    end
}

/// The exit code to end with; the reasons on standard error if there is something to say.
fn outcome(task: &Task) -> ExitCode {
    let container = task.containers.iter().flatten().next();
    let reason = container.and_then(|container| container.reason.as_deref());
    let Some(code) = container.and_then(|container| container.exit_code) else {
        let stopped = task.stopped_reason.as_deref().unwrap_or("it stopped without a reason");
        print::note(format_args!("coracle: the task did not run: {}", print::printable(stopped)));
        if let Some(reason) = reason.filter(|reason| *reason != stopped) {
            print::note(format_args!("coracle: {}", print::printable(reason)));
        }
        return ExitCode::from(DID_NOT_RUN);
    };
    if let Some(reason) = reason {
        print::note(format_args!("coracle: {}", print::printable(reason)));
    }
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(DID_NOT_RUN))
}
