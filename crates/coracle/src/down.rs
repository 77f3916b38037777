//! `coracle down`: takes down what a stopped server left on this machine: its tasks, sandboxes,
//! control groups and network.
//!
//! Tasks end in the orderly way, with their logs stored, by the same roles that serve them; only
//! nothing listens. What then is left (of a server whose state is gone, too) is removed by name.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use serde_json::json;

use crate::commands::{Context, Output, print};
use crate::roles::{OnHost, Roles};
use crate::state_dir::StateDir;
use crate::up::{self, Signals, UpArgs};

#[derive(Clone, Debug, clap::Args)]
pub struct DownArgs {
    /// How long tasks may take to end, in seconds; then they are killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Remove the state, too: tasks, definitions, logs, images, the access key.
    #[arg(long)]
    remove_state: bool,
}

/// The options of a server, as if none were given.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    up: UpArgs,
}

pub fn main(context: &Context, args: &DownArgs) -> anyhow::Result<()> {
    up::require_root("down")?;
    crate::logging::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.context("cannot start the runtime")?.block_on(take_down(&context.state_dir, args))?;
    match context.output {
        Output::Json => print::json(&json!({
            "state_dir": context.state_dir, "stopped_tasks": ended.tasks, "state_removed": ended.state_removed,
        })),
        Output::Text => {
            let dir = context.state_dir.display();
            print::line(format_args!(
                "{} stopped; network, control groups and sandboxes removed",
                count(ended.tasks)
            ))?;
            if ended.state_removed {
                print::line(format_args!("the state in {dir} is removed"))
            } else {
                print::line(format_args!(
                    "the state in {dir} is kept: `coracle up` goes on with it, `coracle down --remove-state` removes it"
                ))
            }
        }
    }
}

fn count(tasks: usize) -> String {
    if tasks == 1 { "1 task".to_owned() } else { format!("{tasks} tasks") }
}

struct Ended {
    tasks: usize,
    state_removed: bool,
}

async fn take_down(state_dir: &Path, args: &DownArgs) -> anyhow::Result<Ended> {
    let mut signals = Signals::listen()?;
    // Left-overs are named by the directory's path: they may outlive it.
    let existed = state_dir.exists();
    let state = StateDir::lock(state_dir).context("only what a stopped server left can be taken down")?;
    let mut defaults = Defaults::try_parse_from(["coracle"]).context("an option in the environment")?.up;
    defaults.ready_sandboxes = 0;
    let (tasks, left) = if state.join("state.db").exists() {
        tokio::select! {
            stopped = stop_tasks(&state, &defaults, Duration::from_secs(args.timeout)) => stopped?,
            () = signals.received() => bail!("interrupted; what was not stopped goes on running"),
        }
    } else {
        (0, OnHost::open(&state, &defaults).await?)
    };
    left.remove().await?;
    state.unpublish();
    let state_removed = args.remove_state || !existed || state.is_ephemeral();
    if state_removed {
        state.remove()?;
    }
    Ok(Ended { tasks, state_removed })
}

async fn stop_tasks(state: &StateDir, args: &UpArgs, patience: Duration) -> anyhow::Result<(usize, OnHost)> {
    // Nothing listens there: no task is started that would pull from it.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let roles = Roles::start(state, args, address, "http://127.0.0.1:0").await?;
    let tasks =
        roles.control.stop_all_tasks("Stopped with coracle down").await.context("tasks cannot be stopped")?;
    if !roles.wait_for_the_last_task(patience).await? {
        print::note(format_args!("tasks that did not end within {} s are killed", patience.as_secs()));
        roles.kill_tasks().await?;
    }
    Ok((tasks, roles.stop().await?))
}
