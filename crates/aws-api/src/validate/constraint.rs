//! Constraints and the messages about them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{Rules, Wording};
use crate::Error;
use crate::schema::{Kind, Schema};

/// How much of an offending value a message repeats, in characters.
const MAX_SHOWN: usize = 512;

/// One broken constraint.
pub struct Violation {
    /// The member, such as `tags.1.member.key`.
    pub path: String,
    /// The value as shown: quoted, or `null`.
    pub shown: String,
    /// Of what it is demanded.
    pub subject: Subject,
    /// What is demanded, without its subject: `have length less than or equal to 512`.
    pub demand: String,
}

/// Of what something is demanded.
#[derive(Clone, Copy)]
pub enum Subject {
    Member,
    MapKeys,
    MapValue,
}

impl Subject {
    fn words(self) -> &'static str {
        match self {
            Self::Member => "Member",
            Self::MapKeys => "Map keys",
            Self::MapValue => "Map value",
        }
    }
}

impl Violation {
    /// The value at `path` breaks `demand`.
    pub fn new(path: String, value: &Value, subject: Subject, demand: String) -> Self {
        let shown = match value {
            Value::Null => "null".to_owned(),
            value => format!("'{}'", shorten(&show(value))),
        };
        Self { path, shown, subject, demand }
    }
}

/// The error that tells of the violations, if there are any.
pub fn report(rules: &Rules, violations: &[Violation]) -> Option<Error> {
    let first = violations.first()?;
    let message = match rules.wording {
        Wording::Coral => {
            let parts: Vec<_> = violations
                .iter()
                .map(|violation| {
                    format!(
                        "Value {} at '{}' failed to satisfy constraint: {} must {}",
                        violation.shown,
                        violation.path,
                        violation.subject.words(),
                        violation.demand
                    )
                })
                .collect();
            let plural = if parts.len() == 1 { "" } else { "s" };
            format!("{} validation error{plural} detected: {}", parts.len(), parts.join("; "))
        }
        Wording::Ecr => format!(
            "Invalid parameter at '{}' failed to satisfy constraint: 'must {}'",
            first.path, first.demand
        ),
    };
    Some(Error::new(rules.code, 400, message))
}

/// `satisfy constraint: [Member must …, Member must …]`, which is how a container's scalar members
/// are reported.
pub fn of_members(demands: &[String]) -> String {
    let demands: Vec<_> = demands.iter().map(|demand| format!("Member must {demand}")).collect();
    format!("satisfy constraint: [{}]", demands.join(", "))
}

/// What `value` breaks of its own shape's constraints; its members are not looked at.
pub fn demands(rules: &Rules, schema: &Schema, value: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    match (&schema.kind, value) {
        (Kind::String { min, max, pattern, values }, Value::String(text)) => {
            if rules.values && !values.is_empty() && !values.contains(&text.as_str()) {
                broken.push(format!("satisfy enum value set: [{}]", values.join(", ")));
            }
            if let Some(pattern) = pattern
                && rules.pattern
                && !matches(pattern, text)
            {
                broken.push(match rules.wording {
                    Wording::Coral => format!("satisfy regular expression pattern: {pattern}"),
                    Wording::Ecr => format!("satisfy regular expression '{pattern}'"),
                });
            }
            if rules.length {
                length(&mut broken, *min, *max, text.chars().count());
            }
        }
        (Kind::Blob { min, max }, Value::String(text)) if rules.length => {
            length(&mut broken, *min, *max, decoded_length(text));
        }
        (Kind::List { min, max, .. }, Value::Array(members)) if rules.length => {
            length(&mut broken, *min, *max, members.len());
        }
        (Kind::Map { min, max, .. }, Value::Object(members)) if rules.length => {
            length(&mut broken, *min, *max, members.len());
        }
        (Kind::Integer { min, max } | Kind::Long { min, max }, Value::Number(number)) if rules.range => {
            if let Some(number) = number.as_i64() {
                range(&mut broken, *min, *max, number);
            }
        }
        (Kind::Double { min, max }, Value::Number(number)) if rules.range => {
            if let Some(number) = number.as_f64() {
                range(&mut broken, *min, *max, number);
            }
        }
        _ => {}
    }
    broken
}

fn length(broken: &mut Vec<String>, min: Option<u64>, max: Option<u64>, length: usize) {
    let length = length as u64;
    if let Some(max) = max.filter(|max| length > *max) {
        broken.push(format!("have length less than or equal to {max}"));
    }
    if let Some(min) = min.filter(|min| length < *min) {
        broken.push(format!("have length greater than or equal to {min}"));
    }
}

fn range<T>(broken: &mut Vec<String>, min: Option<T>, max: Option<T>, number: T)
where
    T: PartialOrd + std::fmt::Display,
{
    if let Some(max) = max.filter(|max| number > *max) {
        broken.push(format!("have value less than or equal to {max}"));
    }
    if let Some(min) = min.filter(|min| number < *min) {
        broken.push(format!("have value greater than or equal to {min}"));
    }
}

/// The length of what a base64 text stands for (RFC 4648 §4).
fn decoded_length(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

/// Whether the whole of `text` matches. The models' patterns are few and constant, so each is
/// compiled once and kept. One that does not compile constrains nothing; a test holds that all do.
fn matches(pattern: &'static str, text: &str) -> bool {
    compiled(pattern).is_none_or(|regex| regex.is_match(text))
}

pub(super) fn compiled(pattern: &'static str) -> Option<Arc<Regex>> {
    type Cache = RwLock<HashMap<&'static str, Option<Arc<Regex>>>>;
    static CACHE: std::sync::LazyLock<Cache> = std::sync::LazyLock::new(Cache::default);

    if let Some(known) = CACHE.read().unwrap_or_else(PoisonError::into_inner).get(pattern) {
        return known.clone();
    }
    let regex = RegexBuilder::new(&format!("^(?:{pattern})$")).build().ok().map(Arc::new);
    let mut cache = CACHE.write().unwrap_or_else(PoisonError::into_inner);
    cache.insert(pattern, regex.clone());
    regex
}

/// A value as Java's `toString` has it, which is what AWS's messages repeat.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(members) => {
            let members: Vec<_> = members.iter().take(MAX_SHOWN).map(show).collect();
            format!("[{}]", members.join(", "))
        }
        Value::Object(members) => {
            let members: Vec<_> =
                members.iter().take(MAX_SHOWN).map(|(k, v)| format!("{k}={}", show(v))).collect();
            format!("{{{}}}", members.join(", "))
        }
        other => other.to_string(),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
