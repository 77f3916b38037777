//! Checks a request against its model.
//!
//! [`parse`] reads a body once, driven by the operation's [`Schema`]: it never builds what the
//! model does not name, bounds how much it builds, and what it returns fits the generated types.
//!
//! Two kinds of refusal, as AWS has them: a value of the wrong JSON type is a
//! `SerializationException` and stops the reading; values that break constraints are collected and
//! reported together under the service's own code.

mod constraint;
mod reader;

use serde::de::{DeserializeSeed, Deserializer};
use serde_json::{Map, Value};

use crate::error::common;
use crate::{Error, Schema};
use constraint::Violation;
use reader::{Reader, State};

/// How a service reports a request that breaks its model, and which constraints it checks.
#[derive(Debug)]
pub struct Rules {
    /// The error code.
    pub code: &'static str,
    /// The form of the message.
    pub wording: Wording,
    /// Lengths of strings, blobs, lists and maps are checked.
    pub length: bool,
    /// Numbers' ranges are checked.
    pub range: bool,
    /// Patterns are checked.
    pub pattern: bool,
    /// Enumerations are checked.
    pub values: bool,
    /// Required members must be there.
    pub required: bool,
}

/// The form of a validation message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// `1 validation error detected: Value 'x' at 'member' failed to satisfy constraint: …`, with
    /// all violations.
    Coral,
    /// `Invalid parameter at 'member' failed to satisfy constraint: '…'`, with the first.
    Ecr,
}

/// Reads a JSON body. An empty one is an empty object, as the JSON protocols have it.
///
/// # Errors
/// SerializationException, or the service's validation error.
pub fn parse(rules: &Rules, schema: &'static Schema, body: &[u8]) -> Result<Value, Error> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return parse_value(rules, schema, Value::Object(Map::new()));
    }
    let mut source = serde_json::Deserializer::from_slice(body);
    let read = read(rules, schema, &mut source)?;
    source.end().map_err(|error| malformed(&error))?;
    read.judge(rules)
}

/// Reads what another protocol brought into JSON's form.
///
/// # Errors
/// As [`parse`].
pub fn parse_value(rules: &Rules, schema: &'static Schema, value: Value) -> Result<Value, Error> {
    read(rules, schema, value)?.judge(rules)
}

/// A value of the right types, and what it breaks.
struct Read {
    value: Value,
    violations: Vec<Violation>,
}

impl Read {
    fn judge(self, rules: &Rules) -> Result<Value, Error> {
        match constraint::report(rules, &self.violations) {
            Some(error) => Err(error),
            None => Ok(self.value),
        }
    }
}

fn read<'de, D>(rules: &Rules, schema: &'static Schema, source: D) -> Result<Read, Error>
where
    D: Deserializer<'de>,
    D::Error: std::fmt::Display,
{
    let mut state = State::new(rules);
    let outcome = Reader { schema, state: &mut state }.deserialize(source);
    match (state.refusal, outcome) {
        (Some(refusal), _) => Err(common::serialization(refusal)),
        (None, Err(error)) => Err(malformed(&error)),
        (None, Ok(None)) => Err(malformed(&"null is no structure")),
        (None, Ok(Some(value))) => Ok(Read { value, violations: state.violations }),
    }
}

fn malformed(error: &impl std::fmt::Display) -> Error {
    common::serialization(format!("The request body is not valid JSON: {error}"))
}
