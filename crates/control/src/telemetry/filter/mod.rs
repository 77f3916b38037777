//! The CloudWatch Logs filter pattern language.
//!
//! Source: "Filter pattern syntax for metric filters, subscription filters, filter log events, and
//! Live Tail" in the CloudWatch Logs User Guide (`FilterAndPatternSyntax.html`). A pattern is one of
//!
//! - nothing, or `" "`: every event;
//! - terms: `ERROR "exact phrase" ?optional -excluded %regex%`;
//! - a JSON expression: `{ $.level = "ERROR" && ($.n >= 5 || $.user.id NOT EXISTS) }`;
//! - space-delimited fields: `[ip, user, ..., status = 4*, bytes > 1000]`.
//!
//! A pattern comes from a tenant: its length, depth, wildcards and regular expressions are bounded,
//! and matching is linear in the message.

mod compare;
mod cursor;
mod fields;
mod json;
mod rx;
mod terms;

#[cfg(test)]
mod tests;

use std::fmt;

/// Longest pattern, in characters (`FilterPattern` in the service model: at most 1024).
pub const MAX_PATTERN_CHARS: usize = 1024;

/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 32;

/// Most regular expressions in one pattern (the guide: "a limit of 2 regex for each filter pattern").
const MAX_REGEXES: usize = 2;

/// Why a pattern was refused. The text is what the API answers as `InvalidParameterException`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid filter pattern: {reason}")]
pub struct PatternError {
    reason: String,
}

impl PatternError {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    fn term(term: &str) -> Self {
        Self::new(format!("Invalid character(s) in term '{term}'"))
    }
}

/// A parsed pattern, ready to be matched against messages from any thread.
pub struct FilterPattern {
    kind: Kind,
}

enum Kind {
    All,
    Terms(terms::Terms),
    Json(json::Expr),
    Fields(fields::Fields),
}

impl fmt::Debug for FilterPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::All => "All",
            Kind::Terms(_) => "Terms",
            Kind::Json(_) => "Json",
            Kind::Fields(_) => "Fields",
        };
        f.debug_tuple("FilterPattern").field(&kind).finish()
    }
}

impl FilterPattern {
    /// Parses `pattern`; an empty pattern matches every event.
    ///
    /// # Errors
    /// What is wrong with the pattern, in the service's words where they are known.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        if pattern.chars().count() > MAX_PATTERN_CHARS {
            return Err(PatternError::new(format!("longer than {MAX_PATTERN_CHARS} characters")));
        }
        let trimmed = pattern.trim();
        let kind = if trimmed.is_empty() {
            Kind::All
        } else if trimmed.starts_with('{') {
            if !trimmed.ends_with('}') {
                return Err(PatternError::new("If a filter pattern starts with '{' it must end with '}'"));
            }
            Kind::Json(json::parse(trimmed)?)
        } else if trimmed.starts_with('[') {
            if !trimmed.ends_with(']') {
                return Err(PatternError::new("If a filter pattern starts with '[' it must end with ']'"));
            }
            Kind::Fields(fields::parse(trimmed)?)
        } else {
            Kind::Terms(terms::parse(trimmed)?)
        };
        Ok(Self { kind })
    }

    /// Whether every message matches, so that reading it can be skipped.
    pub fn matches_everything(&self) -> bool {
        matches!(self.kind, Kind::All)
    }

    /// Whether `message` matches.
    pub fn matches(&self, message: &str) -> bool {
        match &self.kind {
            Kind::All => true,
            Kind::Terms(terms) => terms.matches(message),
            Kind::Json(expr) => serde_json::from_str(message).is_ok_and(|doc| expr.matches(&doc)),
            Kind::Fields(fields) => fields.matches(message),
        }
    }

    /// What `TestMetricFilter` reports of a message: nothing when it does not match, else the values
    /// of the fields (`$ip`) or selectors (`$.user.id`) that the pattern names, in its order.
    pub fn extract(&self, message: &str) -> Option<Vec<(String, String)>> {
        match &self.kind {
            Kind::All => Some(Vec::new()),
            Kind::Terms(terms) => terms.matches(message).then(Vec::new),
            Kind::Json(expr) => {
                let doc = serde_json::from_str(message).ok()?;
                expr.matches(&doc).then(|| expr.extract(&doc))
            }
            Kind::Fields(fields) => fields.extract(message),
        }
    }
}
