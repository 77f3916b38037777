//! A task as its user wants it.

use serde::{Deserialize, Serialize};

use crate::cluster::Tags;
use crate::id::{AccountId, ClusterName, Region, SecurityGroupId, SubnetId, TaskId};
use crate::spec::TaskSpec;
use crate::status::{DesiredStatus, StopCause};
use crate::time::Timestamp;

/// The intent: written by API handlers only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub account: AccountId,
    pub region: Region,
    pub cluster: ClusterName,
    pub spec: TaskSpec,
    pub desired: DesiredStatus,
    pub created_at: Timestamp,
    /// Set together with `desired: STOPPED`.
    pub stop: Option<StopRequest>,
    pub network: TaskNetwork,
    /// `FARGATE` or `FARGATE_SPOT` when the task came by a capacity provider.
    pub capacity_provider: Option<String>,
    /// Whether the request named the launch type `FARGATE`.
    pub launch_type: Option<String>,
    pub platform_version: String,
    pub group: String,
    pub started_by: Option<String>,
    pub client_token: Option<String>,
    pub enable_execute_command: bool,
    /// The request's overrides as the caller wrote them, for DescribeTasks.
    pub overrides: serde_json::Value,
    pub tags: Tags,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StopRequest {
    pub at: Timestamp,
    pub cause: StopCause,
}

/// `awsvpcConfiguration`, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskNetwork {
    /// Candidates; the planner picks one with a free address.
    pub subnets: Vec<SubnetId>,
    pub security_groups: Vec<SecurityGroupId>,
    pub assign_public_ip: bool,
}
