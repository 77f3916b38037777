//! Comparing a value found in a message with the literal of a condition.

use regex::Regex;
use serde_json::Value as Json;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Operator {
    /// Whether it orders numbers, as against testing equality.
    pub fn is_order(self) -> bool {
        !matches!(self, Self::Equal | Self::NotEqual)
    }

    fn holds(self, found: Number, literal: Number) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let Some(ordering) = found.partial_cmp(literal) else {
            return self == Self::NotEqual;
        };
        match self {
            Self::Equal => ordering == Equal,
            Self::NotEqual => ordering != Equal,
            Self::Less => ordering == Less,
            Self::LessOrEqual => ordering != Greater,
            Self::Greater => ordering == Greater,
            Self::GreaterOrEqual => ordering != Less,
        }
    }
}

/// A number, exact when it is whole: account numbers do not fit a float's 53 bits of precision.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    /// Reads `+1`, `-2.5`, `1e+3`; not `inf`, `nan` or hexadecimal.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        if !text.contains(|c: char| c.is_ascii_digit()) || !text.chars().all(plain) {
            return None;
        }
        if let Ok(whole) = text.parse() {
            return Some(Self::Whole(whole));
        }
        let float = text.parse::<f64>().ok()?;
        float.is_finite().then_some(Self::Float(float))
    }

    fn of(number: &serde_json::Number) -> Option<Self> {
        if let Some(n) = number.as_i64() {
            return Some(Self::Whole(n.into()));
        }
        if let Some(n) = number.as_u64() {
            return Some(Self::Whole(n.into()));
        }
        number.as_f64().map(Self::Float)
    }

    fn partial_cmp(self, other: Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            _ => self.as_f64().partial_cmp(&other.as_f64()),
        }
    }

    fn as_f64(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Float(n) => n,
        }
    }
}

/// Text with `*` wildcards: the literal pieces between them. Always at least one piece.
#[derive(Clone, Debug)]
pub(super) struct Glob {
    pieces: Vec<String>,
}

impl Default for Glob {
    fn default() -> Self {
        Self { pieces: vec![String::new()] }
    }
}

impl Glob {
    pub fn push(&mut self, c: char) {
        if let Some(last) = self.pieces.last_mut() {
            last.push(c);
        }
    }

    pub fn star(&mut self) {
        self.pieces.push(String::new());
    }

    /// The text with its wildcards written as `*`.
    pub fn literal(&self) -> String {
        self.pieces.join("*")
    }

    /// Whether the whole of `text` is covered. Linear: each piece is sought once, leftmost.
    pub fn covers(&self, text: &str) -> bool {
        match self.pieces.as_slice() {
            [] => text.is_empty(),
            [only] => only == text,
            [first, middle @ .., last] => {
                let Some(mut rest) = text.strip_prefix(first.as_str()) else {
                    return false;
                };
                for piece in middle {
                    match rest.find(piece.as_str()) {
                        Some(i) => rest = &rest[i + piece.len()..],
                        None => return false,
                    }
                }
                rest.ends_with(last.as_str())
            }
        }
    }
}

/// The literal of a condition.
#[derive(Debug)]
pub(super) enum Value {
    /// A bare number; the text is kept for comparing with strings.
    Number {
        number: Number,
        text: String,
    },
    Text(Glob),
    Regex(Regex),
}

impl Value {
    pub fn bare(word: &str) -> Self {
        if let Some(number) = Number::parse(word) {
            return Self::Number { number, text: word.to_owned() };
        }
        let mut glob = Glob::default();
        for c in word.chars() {
            if c == '*' {
                glob.star();
            } else {
                glob.push(c);
            }
        }
        Self::Text(glob)
    }

    /// Compares a field of a space-delimited event.
    pub fn compare_field(&self, operator: Operator, field: &str) -> bool {
        match self {
            Self::Number { number, text } => match Number::parse(field) {
                Some(found) => operator.holds(found, *number),
                None => Self::equality(operator, field == text),
            },
            Self::Text(glob) => Self::equality(operator, glob.covers(field)),
            Self::Regex(regex) => Self::equality(operator, regex.is_match(field)),
        }
    }

    /// Compares a node of a JSON event. Objects, arrays and null compare with nothing: neither `=`
    /// nor `!=` holds for them ("If a property selector points to an array or object, the filter
    /// pattern won't match the log format").
    pub fn compare_json(&self, operator: Operator, node: &Json) -> bool {
        match (self, node) {
            (_, Json::Null | Json::Array(_) | Json::Object(_)) => false,
            (Self::Number { number, .. }, Json::Number(found)) => {
                Number::of(found).is_some_and(|found| operator.holds(found, *number))
            }
            (Self::Number { .. }, Json::String(text)) if !operator.is_order() => {
                self.compare_field(operator, text)
            }
            (Self::Number { .. }, _) => operator == Operator::NotEqual,
            (_, Json::String(text)) => self.compare_field(operator, text),
            // Wildcards and quoted text see a number or a boolean as it is written.
            (_, other) => self.compare_field(operator, &other.to_string()),
        }
    }

    /// What `operator` says, given whether the two sides are equal; order does not hold for text.
    fn equality(operator: Operator, equal: bool) -> bool {
        match operator {
            Operator::Equal => equal,
            Operator::NotEqual => !equal,
            _ => false,
        }
    }
}
