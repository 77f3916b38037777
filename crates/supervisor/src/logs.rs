//! From a container's output to log records: lines, events of several lines, and the buffer that
//! holds them until the agent has stored them.

use std::collections::VecDeque;

use model::Timestamp;
use model::sandbox::{LogBatch, LogRecord};
use model::spec::{LogMode, LogSpec};
use regex_lite::Regex;

/// The longest record, in bytes: CloudWatch Logs takes events of 256 KiB, of which 26 bytes are
/// its own ("PutLogEvents").
pub const MAX_RECORD: usize = 256 * 1024 - 26;
/// In blocking mode the container's writes wait when this many bytes are not acknowledged.
const BLOCKING_CAPACITY: u64 = 1024 * 1024;
/// The most that one batch carries, in bytes of text: far below a frame's limit even when JSON
/// escapes every byte.
const MAX_BATCH: usize = 256 * 1024;
const MAX_BATCH_RECORDS: usize = 4096;
/// What a record costs beside its text.
const RECORD_OVERHEAD: u64 = 48;

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds output; calls `line` for each complete line, without its line feed. A longer line than
    /// [`MAX_RECORD`] is cut where it would grow beyond.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (part, rest) = match end {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (bytes, &bytes[bytes.len()..]),
            };
            bytes = rest;
            if end.is_some() && self.partial.is_empty() && part.len() <= MAX_RECORD {
                line(part);
                continue;
            }
            self.partial.extend_from_slice(part);
            while self.partial.len() > MAX_RECORD {
                let cut = character_boundary(&self.partial, MAX_RECORD);
                line(&self.partial[..cut]);
                self.partial.drain(..cut);
            }
            if end.is_some() {
                line(&self.partial);
                self.partial.clear();
            }
        }
    }

    /// Ends the stream: what came after the last line feed is a line, too.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
            self.partial = Vec::new();
        }
    }
}

/// The last place at or before `at` where no UTF-8 character is cut.
fn character_boundary(bytes: &[u8], at: usize) -> usize {
    (at.saturating_sub(3)..=at).rev().find(|at| bytes[*at] & 0xC0 != 0x80).unwrap_or(at)
}

/// The records of one container, from the first unacknowledged one on.
pub struct LogBuffer {
    mode: LogMode,
    pattern: Option<Regex>,
    /// A terminal ends lines with a carriage return, too.
    tty: bool,
    /// An event of several lines that may still grow.
    event: Option<LogRecord>,
    records: VecDeque<LogRecord>,
    /// Offset of the first record in `records`.
    first: u64,
    /// Offset of the next record to send on the present connection.
    unsent: u64,
    bytes: u64,
    /// Records that found the buffer full in non-blocking mode.
    pub dropped: u64,
}

impl LogBuffer {
    pub fn new(spec: &LogSpec, tty: bool) -> Self {
        let pattern = spec.multiline_pattern.as_deref().and_then(|pattern| match Regex::new(pattern) {
            Ok(regex) => Some(regex),
            Err(error) => {
                tracing::warn!(%error, "multiline pattern not understood: every line is an event");
                None
            }
        });
        Self {
            mode: spec.mode,
            pattern,
            tty,
            event: None,
            records: VecDeque::new(),
            first: 0,
            unsent: 0,
            bytes: 0,
            dropped: 0,
        }
    }

    /// Offset after the last record.
    pub fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    /// Offset of the first record that is not acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.first
    }

    /// Whether the container's output shall wait in its pipe.
    pub fn is_full(&self) -> bool {
        matches!(self.mode, LogMode::Blocking) && self.bytes >= BLOCKING_CAPACITY
    }

    /// Whether an event waits for further lines.
    pub fn has_open_event(&self) -> bool {
        self.event.is_some()
    }

    /// Adds a line of output.
    pub fn line(&mut self, bytes: &[u8], at: Timestamp) {
        let bytes = if self.tty { bytes.strip_suffix(b"\r").unwrap_or(bytes) } else { bytes };
        let line = String::from_utf8_lossy(bytes).into_owned();
        let Some(pattern) = &self.pattern else {
            self.append(LogRecord { at, line });
            return;
        };
        let starts = pattern.is_match(&line);
        match &mut self.event {
            Some(event) if !starts && event.line.len() + 1 + line.len() <= MAX_RECORD => {
                event.line.push('\n');
                event.line.push_str(&line);
            }
            _ => {
                self.end_event();
                self.event = Some(LogRecord { at, line });
            }
        }
    }

    /// Ends an event of several lines: nothing further came in time.
    pub fn end_event(&mut self) {
        if let Some(event) = self.event.take() {
            self.append(event);
        }
    }

    fn append(&mut self, record: LogRecord) {
        let cost = record.line.len() as u64 + RECORD_OVERHEAD;
        if let LogMode::NonBlocking { max_buffer_bytes } = self.mode
            && !self.records.is_empty()
            && self.bytes + cost > max_buffer_bytes
        {
            // As Docker's ring buffer: what does not fit is not taken.
            self.dropped += 1;
            return;
        }
        self.bytes += cost;
        self.records.push_back(record);
    }

    /// The next batch that the present connection has not seen.
    pub fn next_batch(&mut self, container: &str) -> Option<LogBatch> {
        let skip = usize::try_from(self.unsent - self.first).ok()?;
        let mut bytes = 0;
        let records: Vec<LogRecord> = self
            .records
            .iter()
            .skip(skip)
            .take(MAX_BATCH_RECORDS)
            .take_while(|record| {
                let fits = bytes == 0 || bytes + record.line.len() <= MAX_BATCH;
                bytes += record.line.len().max(1);
                fits
            })
            .cloned()
            .collect();
        if records.is_empty() {
            return None;
        }
        let first = self.unsent;
        self.unsent += records.len() as u64;
        Some(LogBatch { container: container.to_owned(), first, records })
    }

    /// Forgets all records, as if nothing had been written yet: another machine tells of them.
    pub fn forget(&mut self) {
        self.event = None;
        self.records.clear();
        (self.first, self.unsent, self.bytes, self.dropped) = (0, 0, 0, 0);
    }

    /// A new connection has seen nothing.
    pub fn rewind(&mut self) {
        self.unsent = self.first;
    }

    /// Forgets the records below `upto`.
    pub fn acknowledge(&mut self, upto: u64) {
        while self.first < upto {
            let Some(record) = self.records.pop_front() else { break };
            self.bytes -= record.line.len() as u64 + RECORD_OVERHEAD;
            self.first += 1;
        }
        self.unsent = self.unsent.max(self.first);
        if self.records.is_empty() {
            self.records.shrink_to(64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(mode: LogMode, pattern: Option<&str>) -> LogBuffer {
        let spec = LogSpec {
            region: String::new(),
            group: String::new(),
            stream: String::new(),
            create_group: false,
            mode,
            multiline_pattern: pattern.map(str::to_owned),
        };
        LogBuffer::new(&spec, false)
    }

    fn lines(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut seen = vec![];
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.push(chunk, |line| seen.push(line.to_vec()));
        }
        lines.finish(|line| seen.push(line.to_vec()));
        seen
    }

    #[test]
    fn lines_over_chunks() {
        assert_eq!(lines(&[b"a\nb", b"c\n\nd"]), [&b"a"[..], b"bc", b"", b"d"]);
        assert_eq!(lines(&[b"\n"]), [b""]);
        assert!(lines(&[b""]).is_empty());
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut text = vec![b'x'; MAX_RECORD - 1];
        text.extend("ä".as_bytes());
        text.push(b'\n');
        let cut = lines(&[&text]);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_RECORD - 1, 2]);
        let binary = vec![0x80; MAX_RECORD * 2 + 5];
        assert_eq!(lines(&[&binary]).iter().map(Vec::len).sum::<usize>(), binary.len());
    }

    #[test]
    fn unacknowledged_records_are_sent_again() {
        let mut buffer = buffer(LogMode::Blocking, None);
        for line in ["a", "b", "c"] {
            buffer.line(line.as_bytes(), Timestamp(1));
        }
        let batch = buffer.next_batch("app").unwrap();
        assert_eq!((batch.first, batch.records.len()), (0, 3));
        assert!(buffer.next_batch("app").is_none());
        buffer.acknowledge(2);
        buffer.rewind();
        let batch = buffer.next_batch("app").unwrap();
        assert_eq!((batch.first, batch.records[0].line.as_str()), (2, "c"));
        // More than there is: an agent cannot acknowledge the future.
        buffer.acknowledge(99);
        assert_eq!((buffer.end(), buffer.records.len(), buffer.bytes), (3, 0, 0));
    }

    #[test]
    fn a_copy_begins_anew() {
        let mut buffer = buffer(LogMode::Blocking, Some("^begin"));
        for line in ["begin a", "begin b", "more of b"] {
            buffer.line(line.as_bytes(), Timestamp(1));
        }
        buffer.next_batch("app").unwrap();
        buffer.forget();
        buffer.rewind();
        assert_eq!((buffer.end(), buffer.bytes, buffer.has_open_event()), (0, 0, false));
        buffer.line(b"begin c", Timestamp(2));
        buffer.end_event();
        let batch = buffer.next_batch("app").unwrap();
        assert_eq!((batch.first, batch.records[0].line.as_str()), (0, "begin c"));
    }

    #[test]
    fn full_buffers_wait_or_drop() {
        let mut waiting = buffer(LogMode::Blocking, None);
        let mut dropping = buffer(LogMode::NonBlocking { max_buffer_bytes: 1000 }, None);
        let line = vec![b'x'; 400];
        for _ in 0..4000 {
            waiting.line(&line, Timestamp(1));
            dropping.line(&line, Timestamp(1));
        }
        assert!(waiting.is_full() && waiting.end() == 4000);
        assert!(!dropping.is_full() && dropping.end() == 2 && dropping.dropped == 3998);
    }

    #[test]
    fn batches_fit_a_frame() {
        let mut buffer = buffer(LogMode::Blocking, None);
        for _ in 0..3 {
            buffer.line(&vec![1; MAX_RECORD], Timestamp(1));
        }
        while let Some(batch) = buffer.next_batch("app") {
            assert!(serde_json::to_vec(&batch).unwrap().len() < model::sandbox::MAX_FRAME);
            assert_eq!(batch.records.len(), 1);
        }
    }

    #[test]
    fn events_of_several_lines() {
        let mut buffer = buffer(LogMode::Blocking, Some(r"^\d{4}-"));
        for line in ["2024-01-01 one", "  more", "2024-01-02 two"] {
            buffer.line(line.as_bytes(), Timestamp(1));
        }
        assert_eq!(buffer.end(), 1);
        buffer.end_event();
        let batch = buffer.next_batch("app").unwrap();
        assert_eq!(batch.records[0].line, "2024-01-01 one\n  more");
        assert_eq!(batch.records[1].line, "2024-01-02 two");
    }
}
