//! The project's own tooling: `cargo xtask codegen`, `deps` and `licenses`.

mod codegen;
mod deps;
mod licenses;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Coracle's development tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Generate the AWS wire types from botocore's service models.
    Codegen {
        /// Compare with the committed files and fail on a difference instead of writing.
        #[arg(long)]
        check: bool,
        /// The `botocore` package's directory [default: the one python3 imports]
        #[arg(long, value_name = "DIR")]
        botocore: Option<PathBuf>,
    },
    /// Hold the crates' imports against the design's table, `xtask/deps.json`.
    Deps,
    /// Hold the dependencies' licences and sources against what the project allows.
    Licenses,
}

fn main() -> anyhow::Result<()> {
    let root = workspace_root()?;
    match Arguments::parse().task {
        Task::Codegen { check, botocore } => codegen::run(&root, botocore.as_deref(), check),
        Task::Deps => deps::run(&root),
        Task::Licenses => licenses::run(&root),
    }
}

/// The directory of the workspace's `Cargo.toml`, the parent of this package's.
fn workspace_root() -> anyhow::Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("xtask has no parent directory")
}
