//! The process that runs one task's containers: PID 1 of the task's sandbox.
//!
//! ```text
//! coracle-supervisor sandbox --dir DIR --uid-base N [--scratch FILE]
//! coracle-supervisor init -- PROGRAM…        (inside a container)
//! /init                                      (the first process of a microVM)
//! ```
//!
//! It has one thread, always: it forks, and libcontainer forks, and a forked process of several
//! threads may find any lock taken for good.

mod capabilities;
mod cgroup;
mod container;
mod device_rules;
mod devices;
mod etc_files;
mod exec;
mod executor;
mod guest;
mod health;
mod image_user;
mod init;
mod link;
mod logs;
mod member;
mod netlink;
mod oci;
mod order;
mod parameters;
mod pause;
mod poller;
mod process;
mod rootfs;
mod sandbox;
mod scratch;
mod seccomp;
mod second_fork;
mod supervisor;
mod sys;
mod task;
mod trace;
mod volumes;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::sandbox::SandboxOptions;
use crate::supervisor::Supervisor;

const USAGE: &str = "usage: coracle-supervisor sandbox --dir DIR --uid-base N [--scratch FILE]
       coracle-supervisor init -- PROGRAM [ARGUMENT…]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Whatever the kernel's command line has left for it.
    if guest::is_first_process() {
        guest::run();
    }
    let result = match words[..] {
        ["init", "--", _, ..] => {
            return ExitCode::from(u8::try_from(init::run(&arguments[2..]) & 0xff).unwrap_or(255));
        }
        ["sandbox", ..] => sandbox_options(&words[1..]).and_then(|options| run(&options)),
        ["--version"] => {
            println!("coracle-supervisor {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-supervisor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sandbox_options(words: &[&str]) -> Result<SandboxOptions> {
    let (mut dir, mut uid_base, mut scratch) = (None, None, None);
    for pair in words.chunks(2) {
        match *pair {
            ["--dir", value] => dir = Some(value.into()),
            ["--uid-base", value] => uid_base = Some(value.parse().context("--uid-base")?),
            ["--scratch", value] => scratch = Some(value.into()),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(SandboxOptions {
        dir: dir.context("--dir is missing")?,
        uid_base: uid_base.context("--uid-base is missing")?,
        scratch,
    })
}

fn run(options: &SandboxOptions) -> Result<()> {
    let Some((sandbox, readiness)) = sandbox::start(options)? else { return Ok(()) };
    match Supervisor::new(sandbox) {
        Ok(supervisor) => {
            readiness.confirm()?;
            supervisor.run()
        }
        Err(error) => {
            readiness.fail(&error);
            Err(error)
        }
    }
}
