//! What `coracle run` says while a task starts: one changing line on a terminal, else a line for
//! every change. Always on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use aws_api::ecs::Task;
use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::{print, tasks};

pub struct StatusLine {
    quiet: bool,
    bar: Option<ProgressBar>,
    last: &'static str,
}

impl StatusLine {
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { quiet, bar, last: "" }
    }

    pub fn show(&mut self, task: &Task) {
        let phase = phase(task);
        if phase == self.last {
            return;
        }
        self.last = phase;
        let id = tasks::short(task.task_arn.as_deref().unwrap_or_default());
        match &self.bar {
            Some(bar) if matches!(phase, "running" | "stopped") => {
                bar.finish_and_clear();
                self.bar = None;
                self.quiet = true;
            }
            Some(bar) => bar.set_message(format!("task {id}: {phase}")),
            None if self.quiet => {}
            None => print::note(format_args!("task {id}: {phase}")),
        }
    }

    /// Takes the changing line away, so that others can be printed.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            self.quiet = true;
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.clear();
    }
}

fn phase(task: &Task) -> &'static str {
    match task.last_status.as_deref() {
        Some("RUNNING") => "running",
        Some("DEACTIVATING" | "STOPPING" | "DEPROVISIONING") => "stopping",
        Some("STOPPED") => "stopped",
        _ if task.pull_stopped_at.is_some() => "starting",
        _ if task.pull_started_at.is_some() => "pulling",
        _ => "waiting",
    }
}
