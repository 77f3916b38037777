//! What commands print. A reader that went away ends a command quietly instead of with a panic.

use std::fmt::{self, Display};
use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Standard output was closed by its reader, as in `coracle ps | head -1`.
#[derive(Debug)]
pub struct OutputClosed;

impl Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for OutputClosed {}

/// Writes one line to standard output.
pub fn line(text: impl Display) -> anyhow::Result<()> {
    written(writeln!(io::stdout().lock(), "{text}"))
}

/// Writes several lines to standard output at once.
pub fn lines(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a value as indented JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Writes columns without borders. Every row has as many cells as the header.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    lines(&rendered(header, rows))
}

fn rendered(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and reasons come from others; they must not move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Tells a person something on standard error. Whether anybody reads it does not matter.
pub fn note(text: impl Display) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        result => Ok(result.map_err(|error| anyhow::Error::new(error).context("cannot write the output"))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_no_borders_and_no_trailing_space() {
        let rows = vec![vec!["a".into(), "long cell".into()], vec!["bbb\u{1b}[2J".into(), "x".into()]];
        let text = rendered(&["ONE", "TWO"], rows);
        assert_eq!(text, "ONE      TWO\na        long cell\nbbb\u{fffd}[2J  x\n");
    }
}
