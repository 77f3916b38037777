//! What `coracle push` says while it sends: a bar on a terminal, else a line per blob. On standard
//! error.

use std::io::IsTerminal;

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use super::image::Blob;
use crate::commands::print;

#[derive(Clone)]
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(quiet: bool, blobs: &[Blob]) -> Self {
        let total = blobs.iter().fold(0u64, |sum, blob| sum.saturating_add(blob.size()));
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total);
            // The style is a constant of this file; without it the bar is a plain one.
            if let Ok(style) = ProgressStyle::with_template(
                "pushing {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            ) {
                bar.set_style(style);
            }
            bar
        });
        Self { quiet, bar }
    }

    /// So many bytes more were sent.
    pub fn sent(&self, bytes: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes as u64);
        }
    }

    /// The registry has the blob already.
    pub fn skipped(&self, blob: &Blob) {
        match &self.bar {
            Some(bar) => bar.inc(blob.size()),
            None => self.say(blob, "is there already"),
        }
    }

    /// The registry has it now.
    pub fn done(&self, blob: &Blob) {
        if self.bar.is_none() {
            self.say(blob, "sent");
        }
    }

    fn say(&self, blob: &Blob, what: &str) {
        if !self.quiet {
            let digest = blob.digest.get(..19).unwrap_or(&blob.digest);
            print::note(format_args!("{digest} {what} ({})", BinaryBytes(blob.size())));
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
