//! What `coracle run` says while a task starts: one changing line on a terminal, with a bar while its
//! image is pulled, else a line for every change and every tenth of a pull. Always on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use aws_api::ecs::Task;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use link::PullProgress;

use crate::commands::{print, tasks};

pub struct StatusLine {
    quiet: bool,
    bar: Option<ProgressBar>,
    last: &'static str,
    /// Tenths of the pull that were said, where there is no bar.
    tenths: Option<u64>,
}

const PULLING: &str = "pulling";

impl StatusLine {
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { quiet, bar, last: "", tenths: None }
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
            Some(bar) => {
                bar.set_style(ProgressStyle::default_spinner());
                bar.set_message(format!("task {id}: {phase}"));
            }
            None if self.quiet => {}
            None => print::note(format_args!("task {id}: {phase}")),
        }
    }

    /// Whether an image is being pulled, and somebody wants to know.
    pub fn is_pulling(&self) -> bool {
        !self.quiet && self.last == PULLING
    }

    /// Shows how far the pull is.
    pub fn pulling(&mut self, task: &str, progress: PullProgress) {
        let PullProgress { layers_total, layers_done, bytes_total, bytes_done } = progress;
        let (id, bytes_done) = (tasks::short(task), bytes_done.min(bytes_total));
        if let Some(bar) = &self.bar {
            // The template is a constant of this file; without it the bar is a plain one.
            if let Ok(style) = ProgressStyle::with_template(
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            ) {
                bar.set_style(style);
            }
            bar.set_message(format!("task {id}: pulling, layer {layers_done}/{layers_total}"));
            bar.set_length(bytes_total);
            bar.set_position(bytes_done);
            return;
        }
        let tenths = (u128::from(bytes_done) * 10).checked_div(u128::from(bytes_total));
        let tenths = tenths.and_then(|tenths| u64::try_from(tenths).ok());
        if tenths.is_none() || self.tenths >= tenths {
            return;
        }
        self.tenths = tenths;
        print::note(format_args!(
            "task {id}: pulled {}% ({} of {}, {layers_done} of {layers_total} layers)",
            tenths.unwrap_or_default() * 10,
            BinaryBytes(bytes_done),
            BinaryBytes(bytes_total),
        ));
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
        _ if task.pull_started_at.is_some() => PULLING,
        _ => "waiting",
    }
}
