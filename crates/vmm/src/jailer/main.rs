//! `coracle-jailer`: starts a microVM monitor with nothing but what it needs.
//!
//! ```text
//! coracle-jailer --dir DIR --uid UID --monitor PROGRAM
//! ```
//!
//! The monitor becomes PID 1 of namespaces of its own (PID, mount, network, IPC, UTS), with an empty
//! read-only root, as a host user that nothing else runs as, without capabilities or a way to get any,
//! and with four open files beside `/dev/null`: see [`model::microvm`]. This program says in
//! `DIR/monitor.json` which process that is, and ends when the monitor's program runs.

mod jail;
mod record;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: coracle-jailer --dir DIR --uid UID --monitor PROGRAM";

/// What to jail, and where.
struct Options {
    dir: PathBuf,
    uid: u32,
    monitor: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match options(&words).and_then(|options| jail::start(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-jailer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[&str]) -> Result<Options> {
    let (mut dir, mut uid, mut monitor) = (None, None, None);
    for pair in words.chunks(2) {
        match *pair {
            ["--dir", value] => dir = Some(PathBuf::from(value)),
            ["--uid", value] => uid = Some(value.parse::<u32>().context("--uid")?),
            ["--monitor", value] => monitor = Some(PathBuf::from(value)),
            _ => bail!("{USAGE}"),
        }
    }
    let uid = uid.context("--uid is missing")?;
    if uid == 0 {
        bail!("--uid 0: a monitor does not run as root");
    }
    Ok(Options {
        dir: dir.context("--dir is missing")?,
        uid,
        monitor: monitor.context("--monitor is missing")?,
    })
}
