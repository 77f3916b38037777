//! Reading a pattern character by character, and the lexical parts that all three forms share.

use super::compare::{Glob, Operator, Value};
use super::{MAX_DEPTH, MAX_REGEXES, PatternError, rx};

/// A position in a pattern, and what has been used up of its bounds.
pub(super) struct Cursor<'p> {
    text: &'p str,
    at: usize,
    depth: usize,
    regexes: usize,
}

impl<'p> Cursor<'p> {
    pub fn new(text: &'p str) -> Self {
        Self { text, at: 0, depth: 0, regexes: 0 }
    }

    pub fn rest(&self) -> &'p str {
        // `at` only ever moves by the lengths of characters that were read.
        self.text.get(self.at..).unwrap_or_default()
    }

    pub fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    pub fn skip_space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.next();
        }
    }

    /// Consumes `token` if it comes next.
    pub fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Consumes `word` (any case) if it comes next and ends there.
    pub fn eat_word(&mut self, word: &str) -> bool {
        let Some(head) = self.rest().get(..word.len()) else {
            return false;
        };
        let ends = self.rest()[word.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        if ends && head.eq_ignore_ascii_case(word) {
            self.at += word.len();
            return true;
        }
        false
    }

    pub fn expect(&mut self, token: &str) -> Result<(), PatternError> {
        if self.eat(token) { Ok(()) } else { Err(self.unexpected(&format!("'{token}'"))) }
    }

    /// An error that says what was wanted and what stands there.
    pub fn unexpected(&self, wanted: &str) -> PatternError {
        match self.peek() {
            Some(c) => PatternError::new(format!(
                "expected {wanted} but found '{c}' at position {}",
                self.text[..self.at].chars().count() + 1
            )),
            None => PatternError::new(format!("expected {wanted} but the pattern ends")),
        }
    }

    /// Enters a parenthesis.
    pub fn enter(&mut self) -> Result<(), PatternError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(PatternError::new(format!("parentheses nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    pub fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Takes characters as long as `keep` holds.
    pub fn take_while(&mut self, mut keep: impl FnMut(char) -> bool) -> &'p str {
        let rest = self.rest();
        let len = rest.char_indices().find(|(_, c)| !keep(*c)).map_or(rest.len(), |(i, _)| i);
        self.at += len;
        &rest[..len]
    }

    /// A quoted string whose opening quote comes next. `\` keeps the following character from being
    /// special.
    pub fn quoted(&mut self) -> Result<Glob, PatternError> {
        let start = self.at;
        let quote = self.next().ok_or_else(|| self.unexpected("a quote"))?;
        let mut glob = Glob::default();
        loop {
            match self.next() {
                None => {
                    return Err(PatternError::term(&self.text[start..]));
                }
                Some(c) if c == quote => return Ok(glob),
                Some('\\') => match self.next() {
                    Some(c) => glob.push(c),
                    None => return Err(PatternError::term(&self.text[start..])),
                },
                Some('*') => glob.star(),
                Some(c) => glob.push(c),
            }
        }
    }

    /// A regular expression whose opening `%` comes next.
    pub fn regex(&mut self) -> Result<regex::Regex, PatternError> {
        self.expect("%")?;
        self.regexes += 1;
        if self.regexes > MAX_REGEXES {
            return Err(PatternError::new(format!("more than {MAX_REGEXES} regular expressions")));
        }
        let source = self.take_while(|c| c != '%');
        self.expect("%")?;
        rx::compile(source)
    }

    pub fn operator(&mut self) -> Option<Operator> {
        // Longest first: `<` begins `<=`.
        let table = [
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("=", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        table.into_iter().find(|(token, _)| self.eat(token)).map(|(_, operator)| operator)
    }

    /// The right side of a comparison: a quoted string, a regular expression, or a bare word that
    /// ends at space or one of `stops`.
    pub fn value(&mut self, operator: Operator, stops: &str) -> Result<Value, PatternError> {
        let value = match self.peek() {
            Some('"' | '\'') => Value::Text(self.quoted()?),
            Some('%') => Value::Regex(self.regex()?),
            _ => {
                let word = self.take_while(|c| {
                    !c.is_whitespace() && !matches!(c, '"' | '&' | '|') && !stops.contains(c)
                });
                if word.is_empty() {
                    return Err(self.unexpected("a value"));
                }
                Value::bare(word)
            }
        };
        if operator.is_order() && !matches!(value, Value::Number { .. }) {
            return Err(PatternError::new("numeric operators need a number on their right side"));
        }
        Ok(value)
    }
}
