//! `coracle doctor`: what this machine can do for tasks. Needs neither a server nor root, though
//! without root much of it cannot be tried.

use std::process::ExitCode;

use agent::host::{self, Check, Status};

use super::{Context, Output, print};

pub fn main(context: &Context) -> anyhow::Result<ExitCode> {
    let facts = host::probe(&context.state_dir);
    match context.output {
        Output::Json => print::json(&facts)?,
        Output::Text => {
            print::table(&["NAME", "STATUS", "FOUND", "ADVICE"], facts.checks.iter().map(row).collect())?;
            if !rustix::process::geteuid().is_root() {
                print::note("without root, what needs it could not be tried; sudo coracle doctor tells more");
            }
        }
    }
    Ok(if facts.status() == Status::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(check: &Check) -> Vec<String> {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    vec![
        check.name.clone(),
        status.to_owned(),
        check.found.clone(),
        check.advice.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
