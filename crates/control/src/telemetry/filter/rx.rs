//! Regular expressions between percent signs: the guide's subset, checked and then translated for the
//! `regex` crate, which knows more than the subset and has different classes.

use super::PatternError;
use regex::{Regex, RegexBuilder};

/// Bytes that one compiled expression may take; repetition counts multiply.
const SIZE_LIMIT: usize = 1 << 20;

/// Compiles the text between two `%`.
///
/// # Errors
/// A character, escape or repetition outside of the documented subset, or too large an expression.
pub(super) fn compile(source: &str) -> Result<Regex, PatternError> {
    let invalid = || PatternError::term(source);
    let translated =
        Translator { input: source.chars().peekable(), output: String::with_capacity(source.len() * 2) }
            .run()
            .ok_or_else(invalid)?;
    RegexBuilder::new(&translated)
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(SIZE_LIMIT)
        .nest_limit(16)
        .build()
        .map_err(|_| invalid())
}

struct Translator<'s> {
    input: std::iter::Peekable<std::str::Chars<'s>>,
    output: String,
}

impl Translator<'_> {
    /// The expression in the crate's syntax, or `None` when something is not in the subset.
    fn run(mut self) -> Option<String> {
        self.input.peek()?;
        while let Some(c) = self.input.next() {
            match c {
                '\\' => {
                    let class = self.escape()?;
                    self.output.push_str(&class);
                }
                '[' => self.class()?,
                '{' => self.repetition()?,
                '^' | '$' | '?' | '|' | '*' | '+' | '.' => self.output.push(c),
                // Not an operator on their own.
                ']' | '}' => return None,
                _ => self.literal(c)?,
            }
        }
        Some(self.output)
    }

    fn literal(&mut self, c: char) -> Option<()> {
        if !is_plain(c) {
            return None;
        }
        push_escaped(&mut self.output, c);
        Some(())
    }

    /// What follows a backslash: a class (ASCII, unlike the crate's), a control character, two
    /// hexadecimal digits, or an operator taken literally.
    fn escape(&mut self) -> Option<String> {
        let c = self.input.next()?;
        let text = match c {
            'd' => "[0-9]".to_owned(),
            'D' => "[^0-9]".to_owned(),
            'w' => "[a-zA-Z_0-9]".to_owned(),
            'W' => "[^a-zA-Z_0-9]".to_owned(),
            's' => r"[\t\n\x0B\x0C\r\x20]".to_owned(),
            'S' => r"[^\t\n\x0B\x0C\r\x20]".to_owned(),
            't' | 'n' | 'r' => format!("\\{c}"),
            'x' => {
                let value = self.input.next()?.to_digit(16)? * 16 + self.input.next()?.to_digit(16)?;
                if value > 0x7f {
                    return None;
                }
                format!("\\x{value:02X}")
            }
            _ if c.is_ascii_punctuation() || c == ' ' => {
                let mut text = String::new();
                push_escaped(&mut text, c);
                text
            }
            _ => return None,
        };
        Some(text)
    }

    /// A bracketed class. Inside, the crate gives meaning to `[`, `&&`, `--` and `~~` that the
    /// subset does not: everything but ranges and escapes is written escaped.
    fn class(&mut self) -> Option<()> {
        self.output.push('[');
        if self.input.next_if_eq(&'^').is_some() {
            self.output.push('^');
        }
        let mut items = 0;
        loop {
            let c = self.input.next()?;
            if c == ']' && items > 0 {
                self.output.push(']');
                return Some(());
            }
            items += 1;
            if c == '\\' {
                let escaped = self.escape()?;
                self.output.push_str(&escaped);
                continue;
            }
            if !is_plain(c) && !is_operator(c) {
                return None;
            }
            push_escaped(&mut self.output, c);
            if c == '-' || self.input.peek() != Some(&'-') {
                continue;
            }
            self.input.next();
            match self.input.peek().copied() {
                // `a-]`: the hyphen is literal.
                Some(']') => self.output.push_str("\\-"),
                Some(end) if is_plain(end) => {
                    self.input.next();
                    self.output.push('-');
                    push_escaped(&mut self.output, end);
                }
                _ => return None,
            }
        }
    }

    /// `{m}`, `{m,}`, `{,n}` or `{m, n}`; spaces are allowed.
    fn repetition(&mut self) -> Option<()> {
        let mut body = String::new();
        loop {
            match self.input.next()? {
                '}' => break,
                ' ' => {}
                c if c.is_ascii_digit() || c == ',' => body.push(c),
                _ => return None,
            }
        }
        let bound = |text: &str| text.is_empty() || text.parse::<u16>().is_ok();
        let normal = match body.split_once(',') {
            Some((m, n)) if bound(m) && bound(n) && !(m.is_empty() && n.is_empty()) => {
                format!("{{{},{n}}}", if m.is_empty() { "0" } else { m })
            }
            None if !body.is_empty() && bound(&body) => format!("{{{body}}}"),
            _ => return None,
        };
        self.output.push_str(&normal);
        Some(())
    }
}

/// Alphanumerics and the supported symbols. Space is not in the guide's list but in its examples.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '#' | '=' | '@' | '/' | ';' | ',' | '-' | ' ')
}

fn is_operator(c: char) -> bool {
    matches!(c, '^' | '$' | '?' | '[' | ']' | '{' | '}' | '|' | '*' | '+' | '.')
}

/// Writes an ASCII character so that the crate takes it literally, in or out of a class.
fn push_escaped(output: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || c == '_' {
        output.push(c);
    } else {
        output.push_str(&format!("\\x{:02X}", u32::from(c)));
    }
}
