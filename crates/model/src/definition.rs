//! Task definitions as registered.

use serde::{Deserialize, Serialize};

use crate::cluster::Tags;
use crate::time::Timestamp;

/// One revision of a task definition family. Immutable but for its status and tags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskDefinition {
    pub family: String,
    pub revision: u32,
    pub status: DefinitionStatus,
    pub registered_at: Timestamp,
    pub deregistered_at: Option<Timestamp>,
    pub delete_requested_at: Option<Timestamp>,
    pub registered_by: String,
    /// The user's document, validated and with defaults filled in, in the wire's field names.
    /// RunTask compiles it into a [`crate::spec::TaskSpec`].
    pub document: serde_json::Value,
    pub tags: Tags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DefinitionStatus {
    Active,
    Inactive,
    DeleteInProgress,
}

impl DefinitionStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Inactive => "INACTIVE",
            Self::DeleteInProgress => "DELETE_IN_PROGRESS",
        }
    }
}
