//! `coracle`: the command line, and the composition of all roles in one process (`coracle up`).

mod client;
mod commands;
mod logging;
mod state_dir;
mod supervisor_binary;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{Context, Output};

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
    /// Print what points AWS clients at the server: eval "$(coracle env)"
    Env,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two TLS providers reach the dependency tree; rustls panics unless one is chosen.
    drop(rustls::crypto::ring::default_provider().install_default());
    let context = Context { state_dir: cli.state_dir, output: cli.output };
    let outcome = match cli.command {
        Command::Up(args) => up::main(&context.state_dir, *args).map(|()| ExitCode::SUCCESS),
        Command::Env => commands::env::main(&context).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("coracle: {error:#}");
            ExitCode::FAILURE
        }
    }
}
