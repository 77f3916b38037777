//! Where each record lives in the store. Every key of a resource begins with its kind, then its
//! account and region.

use model::{AccountId, ClusterName, Region, SnapshotId, TaskId};

/// Whose resource it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    pub account: AccountId,
    pub region: Region,
}

impl Scope {
    fn path(&self) -> String {
        format!("{}/{}", self.account, self.region)
    }

    #[must_use]
    pub fn cluster(&self, name: &ClusterName) -> String {
        format!("ecs/cluster/{}/{name}", self.path())
    }

    #[must_use]
    pub fn clusters(&self) -> String {
        format!("ecs/cluster/{}/", self.path())
    }

    /// Revisions sort by number.
    #[must_use]
    pub fn definition(&self, family: &str, revision: u32) -> String {
        format!("{DEFINITIONS}{}/{family}/{revision:010}", self.path())
    }

    #[must_use]
    pub fn definitions(&self) -> String {
        format!("{DEFINITIONS}{}/", self.path())
    }

    #[must_use]
    pub fn family_definitions(&self, family: &str) -> String {
        format!("{DEFINITIONS}{}/{family}/", self.path())
    }

    /// A family of task definitions: the last revision number given out, and counts.
    #[must_use]
    pub fn family(&self, family: &str) -> String {
        format!("{FAMILIES}{}/{family}", self.path())
    }

    #[must_use]
    pub fn client_token(&self, cluster: &ClusterName, token: &str) -> String {
        format!("{CLIENT_TOKENS}{}/{cluster}/{token}", self.path())
    }

    #[must_use]
    pub fn account_setting(&self, principal: &str, name: &str) -> String {
        format!("ecs/account-setting/{}/{principal}/{name}", self.path())
    }

    #[must_use]
    pub fn account_settings(&self) -> String {
        format!("ecs/account-setting/{}/", self.path())
    }

    #[must_use]
    pub fn task(&self, cluster: &ClusterName, task: &TaskId) -> TaskPath {
        TaskPath(format!("{}/{cluster}/{task}", self.path()))
    }

    /// The intent: [`model::snapshot::Snapshot`].
    #[must_use]
    pub fn snapshot(&self, id: &SnapshotId) -> String {
        format!("{SNAPSHOTS}{}/{id}", self.path())
    }

    #[must_use]
    pub fn snapshots(&self) -> String {
        format!("{SNAPSHOTS}{}/", self.path())
    }

    /// What its host said: [`model::snapshot::SnapshotReport`].
    #[must_use]
    pub fn snapshot_report(&self, id: &SnapshotId) -> String {
        format!("{SNAPSHOT_REPORTS}{}/{id}", self.path())
    }

    /// Prefix of the intents of a cluster's tasks.
    #[must_use]
    pub fn cluster_tasks(&self, cluster: &ClusterName) -> String {
        format!("{TASKS}{}/{cluster}/", self.path())
    }
}

pub const DEFINITIONS: &str = "ecs/definition/";
pub const FAMILIES: &str = "ecs/family/";
pub const CLIENT_TOKENS: &str = "ecs/client-token/";
/// Prefix of everything of ECS.
pub const ECS: &str = "ecs/";
pub const TASKS: &str = "ecs/task/";
pub const ASSIGNMENTS: &str = "ecs/assignment/";
pub const OBSERVATIONS: &str = "ecs/observation/";
/// One entry for each task whose intent the planner has not seen yet.
pub const PENDING: &str = "ecs/pending/";
pub const SNAPSHOTS: &str = "ecs/snapshot/";
pub const SNAPSHOT_REPORTS: &str = "ecs/snapshot-report/";
pub const HOSTS: &str = "host/";
pub const SUBNETS: &str = "vpc/subnet/";

/// `ACCOUNT/REGION/CLUSTER/TASK`: what the keys of a task's records have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskPath(String);

impl TaskPath {
    /// The path in a key that begins with `prefix`.
    #[must_use]
    pub fn of_key(prefix: &str, key: &str) -> Option<Self> {
        let path = key.strip_prefix(prefix)?;
        (path.split('/').count() == 4).then(|| Self(path.to_owned()))
    }

    #[must_use]
    pub fn of_task(task: &model::task::Task) -> Self {
        let scope = Scope { account: task.account.clone(), region: task.region.clone() };
        scope.task(&task.cluster, &task.id)
    }

    /// The account and region of the task.
    #[must_use]
    pub fn scope(&self) -> Option<Scope> {
        let mut parts = self.0.split('/');
        let account = AccountId::parse(parts.next()?).ok()?;
        let region = Region::parse(parts.next()?).ok()?;
        Some(Scope { account, region })
    }

    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        self.0.rsplit('/').next().and_then(|id| TaskId::parse(id).ok())
    }

    /// The intent: [`model::task::Task`].
    #[must_use]
    pub fn intent(&self) -> String {
        format!("{TASKS}{}", self.0)
    }

    /// [`model::assignment::Assignment`].
    #[must_use]
    pub fn assignment(&self) -> String {
        format!("{ASSIGNMENTS}{}", self.0)
    }

    /// [`model::observation::Observation`].
    #[must_use]
    pub fn observation(&self) -> String {
        format!("{OBSERVATIONS}{}", self.0)
    }

    /// The entry that tells the reconciler to look at the task. An API handler puts it (any value)
    /// in the transaction that writes the intent; the reconciler deletes it with its decision.
    #[must_use]
    pub fn pending(&self) -> String {
        format!("{PENDING}{}", self.0)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
