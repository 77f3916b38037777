//! The user's commands, one file each.

pub mod env;

use std::path::PathBuf;

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
