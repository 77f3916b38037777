//! The user's commands, one file each.

pub mod api_coverage;
pub mod doctor;
pub mod env;
mod fargate_task;
pub mod images;
pub mod inspect;
pub mod kernel;
mod log_reader;
pub mod logs;
pub mod print;
pub mod ps;
pub mod push;
pub mod reset;
pub mod run;
pub mod snapshot;
pub mod stop;
mod tasks;
mod time_text;

use std::path::PathBuf;

use anyhow::Context as _;

/// What every command knows.
pub struct Context {
    pub state_dir: PathBuf,
    pub output: Output,
}

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Context {
    pub fn client(&self) -> anyhow::Result<crate::client::Client> {
        crate::client::Client::find(&self.state_dir)
    }
}

/// Runs a command that talks to the server.
pub fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(command)
}
