//! Where log lines go: `DIR/supervisor.log`, bounded, without a formatting framework; in a microVM
//! the kernel's log.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// The log is for finding out why a sandbox failed, not a record: it stops at this size, in bytes.
const MAX_LOG: u64 = 256 * 1024;
const MAX_LINE: usize = 2048;

/// Writes events of level `info` (ours) and `error` (libraries') to a file.
///
/// Processes forked off the supervisor write to the same file until they execute a program; their
/// own standard error may already be the container's.
pub struct BoundedLog {
    file: File,
    written: AtomicU64,
    /// It takes one line per write, with a weight before it, and knows the time itself.
    is_kernel_log: bool,
}

impl BoundedLog {
    pub fn new(file: File) -> Self {
        let written = AtomicU64::new(file.metadata().map_or(0, |m| m.len()));
        Self { file, written, is_kernel_log: false }
    }

    /// For `/dev/kmsg`.
    pub fn to_kernel(file: File) -> Self {
        Self { file, written: AtomicU64::new(0), is_kernel_log: true }
    }

    fn introduction(&self, metadata: &Metadata<'_>) -> String {
        if self.is_kernel_log {
            // syslog(2)
            let weight = match *metadata.level() {
                Level::ERROR => 3,
                Level::WARN => 4,
                _ => 6,
            };
            return format!("<{weight}>{}:", metadata.target());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}.{:03} {} {}:", now.as_secs(), now.subsec_millis(), metadata.level(), metadata.target())
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.0.len() >= MAX_LINE {
            return;
        }
        let _ = if field.name() == "message" {
            write!(self.0, " {value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for BoundedLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("coracle_supervisor");
        metadata.is_event() && *metadata.level() <= if ours { Level::INFO } else { Level::ERROR }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(self.introduction(event.metadata()));
        event.record(&mut line);
        let mut text = line.0;
        if text.len() > MAX_LINE {
            let cut = (0..=MAX_LINE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
        }
        text.push('\n');
        if self.written.fetch_add(text.len() as u64, Ordering::Relaxed) < MAX_LOG {
            let _ = (&self.file).write_all(text.as_bytes());
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
