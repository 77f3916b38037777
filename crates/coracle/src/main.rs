//! `coracle`: the command line, and the composition of all roles in one process (`coracle up`).

mod client;
mod commands;
mod down;
mod isolation;
mod logging;
mod programs;
mod roles;
mod state_dir;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::print::{self, OutputClosed};
use commands::{Context, Output, block_on};

/// A self-hosted, open AWS Fargate.
#[derive(Parser)]
#[command(name = "coracle", version, about, propagate_version = true)]
struct Cli {
    /// The server's state directory.
    #[arg(long, value_name = "DIR", env = "CORACLE_STATE_DIR", default_value = state_dir::DEFAULT, global = true)]
    state_dir: PathBuf,
    /// How results are printed.
    #[arg(long, value_enum, default_value_t = Output::Text, global = true)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start Coracle on this machine: control and agent in one process
    Up(Box<up::UpArgs>),
    /// Take down what a stopped server left on this machine: its tasks and their network
    ///
    /// A server that ends leaves its tasks running, on purpose. This ends them too, in the orderly
    /// way. The state is kept unless told otherwise.
    Down(down::DownArgs),
    /// Print what points AWS clients at the server: eval "$(coracle env)"
    Env,
    /// Run a container as a task: its output here, its exit code passed on
    ///
    /// Ctrl-C stops the task. The exit code 125 is Coracle's own: the task did not run.
    Run(Box<commands::run::RunArgs>),
    /// List tasks
    Ps(commands::ps::PsArgs),
    /// Print what a task's containers wrote
    Logs(commands::logs::LogsArgs),
    /// Stop tasks
    Stop(commands::stop::StopArgs),
    /// Write a running task down: its memory, its processes, its disk
    ///
    /// The task stands still for that moment and goes on. Only tasks in microVMs.
    Snapshot(commands::snapshot::SnapshotArgs),
    /// List snapshots, or delete them (`rm`)
    Snapshots(commands::snapshot::SnapshotsArgs),
    /// Start tasks that go on where a snapshot was made, under names and addresses of their own
    Restore(commands::snapshot::RestoreArgs),
    /// Print everything about a task, as JSON
    Inspect(commands::inspect::InspectArgs),
    /// List the images of the built-in registry
    Images,
    /// Push an image from a file to the built-in registry
    Push(commands::push::PushArgs),
    /// Say what this machine can do for tasks, and what to do about what it cannot
    Doctor,
    /// Manage the kernels that microVMs run
    #[command(subcommand)]
    Kernel(commands::kernel::KernelCommand),
    /// Empty an ephemeral server
    Reset,
    /// Count the AWS operations that Coracle serves
    ApiCoverage(commands::api_coverage::CoverageArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two TLS providers reach the dependency tree; rustls panics unless one is chosen.
    drop(rustls::crypto::ring::default_provider().install_default());
    let context = Context { state_dir: cli.state_dir, output: cli.output };
    let outcome = match cli.command {
        Command::Up(args) => done(up::main(&context, *args)),
        Command::Down(args) => done(down::main(&context, &args)),
        Command::Env => done(commands::env::main(&context)),
        Command::Run(args) => block_on(commands::run::main(&context, &args)),
        Command::Ps(args) => done(block_on(commands::ps::main(&context, &args))),
        Command::Logs(args) => done(block_on(commands::logs::main(&context, &args))),
        Command::Stop(args) => done(block_on(commands::stop::main(&context, &args))),
        Command::Snapshot(args) => done(block_on(commands::snapshot::make(&context, &args))),
        Command::Snapshots(args) => done(block_on(commands::snapshot::list(&context, &args))),
        Command::Restore(args) => done(block_on(commands::snapshot::restore(&context, &args))),
        Command::Inspect(args) => done(block_on(commands::inspect::main(&context, &args))),
        Command::Images => done(block_on(commands::images::main(&context))),
        Command::Push(args) => done(block_on(commands::push::main(&context, &args))),
        Command::Doctor => commands::doctor::main(&context),
        Command::Kernel(command) => done(commands::kernel::main(&context, &command)),
        Command::Reset => done(block_on(commands::reset::main(&context))),
        Command::ApiCoverage(args) => done(commands::api_coverage::main(&context, &args)),
    };
    match outcome {
        Ok(code) => code,
        // As a program that SIGPIPE ended, without a word.
        Err(error) if error.is::<OutputClosed>() => ExitCode::from(141),
        Err(error) => {
            print::note(format_args!("coracle: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn done(outcome: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}
