//! Clusters: names that group tasks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::ClusterName;
use crate::time::Timestamp;

/// Tags of a resource, by key.
pub type Tags = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: ClusterName,
    pub status: ClusterStatus,
    pub created_at: Timestamp,
    /// Such as `containerInsights` → `enabled`.
    pub settings: BTreeMap<String, String>,
    pub capacity_providers: Vec<String>,
    pub default_strategy: Vec<StrategyItem>,
    /// `configuration` and `serviceConnectDefaults`, kept as the caller wrote them.
    pub configuration: Option<serde_json::Value>,
    pub service_connect_defaults: Option<serde_json::Value>,
    pub tags: Tags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ClusterStatus {
    Active,
    Inactive,
}

impl ClusterStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Inactive => "INACTIVE",
        }
    }
}

/// One item of a capacity provider strategy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrategyItem {
    pub capacity_provider: String,
    pub weight: i32,
    pub base: i32,
}
