//! `crates/aws-api/codegen.json`: which operations are served, and every exception to the models.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The botocore version that the committed output was made from.
    pub botocore: String,
    /// Spellings that count as one word when a name is split, such as `MiB`.
    pub words: Vec<String>,
    pub services: BTreeMap<String, Service>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The served operations.
    pub operations: Vec<String>,
    /// The largest request body that is read, in bytes.
    pub max_body: usize,
    /// Members (`Shape.member`) to redact in Debug output although the model does not say so.
    #[serde(default)]
    pub sensitive_members: BTreeSet<String>,
    /// Patterns (by shape) that replace the model's: `null` drops one.
    #[serde(default)]
    pub patterns: BTreeMap<String, Option<String>>,
    /// HTTP statuses (by error shape) that the service uses in reality but its model leaves out.
    #[serde(default)]
    pub error_statuses: BTreeMap<String, u16>,
    pub validation: Validation,
}

/// How the service reports a request that breaks its model.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// The error code.
    pub code: String,
    /// The words: a variant of `aws_api::validate::Wording`.
    pub wording: String,
    /// The constraints that the service itself checks against its model: `length`, `range`,
    /// `pattern`, `enum`, `required`.
    pub enforced: BTreeSet<String>,
}

impl Config {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
    }
}
