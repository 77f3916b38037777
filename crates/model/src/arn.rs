//! Amazon Resource Names, in the long format that ECS uses today.
//!
//! Source: "Amazon Resource Names (ARNs)" in the ECS developer guide.

use std::fmt;

use crate::id::{AccountId, ClusterName, Region, TaskId};

/// `arn:aws:SERVICE:REGION:ACCOUNT:RESOURCE`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arn {
    pub service: String,
    pub region: Region,
    pub account: AccountId,
    /// All after the fifth colon, such as `task/default/0123…`.
    pub resource: String,
}

impl Arn {
    pub fn new(service: &str, region: &Region, account: &AccountId, resource: impl Into<String>) -> Self {
        Self {
            service: service.to_owned(),
            region: region.clone(),
            account: account.clone(),
            resource: resource.into(),
        }
    }

    /// `None` when `text` is not an ARN of the `aws` partition with a region and an account.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let (arn, partition) = (parts.next()?, parts.next()?);
        if arn != "arn" || partition != "aws" {
            return None;
        }
        let service = parts.next()?.to_owned();
        let region = Region::parse(parts.next()?).ok()?;
        let account = AccountId::parse(parts.next()?).ok()?;
        let resource = parts.next().filter(|r| !r.is_empty())?.to_owned();
        Some(Self { service, region, account, resource })
    }

    pub fn cluster(region: &Region, account: &AccountId, cluster: &ClusterName) -> Self {
        Self::new("ecs", region, account, format!("cluster/{cluster}"))
    }

    pub fn task(region: &Region, account: &AccountId, cluster: &ClusterName, task: &TaskId) -> Self {
        Self::new("ecs", region, account, format!("task/{cluster}/{task}"))
    }

    pub fn task_definition(region: &Region, account: &AccountId, family: &str, revision: u32) -> Self {
        Self::new("ecs", region, account, format!("task-definition/{family}:{revision}"))
    }

    /// A container of a task: `container/CLUSTER/TASK/UUID`.
    pub fn container(
        region: &Region,
        account: &AccountId,
        cluster: &ClusterName,
        task: &TaskId,
        id: &str,
    ) -> Self {
        Self::new("ecs", region, account, format!("container/{cluster}/{task}/{id}"))
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, region, account, resource } = self;
        write!(f, "arn:aws:{service}:{region}:{account}:{resource}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_round_trip_and_refuse_other_shapes() {
        let text = "arn:aws:ecs:eu-central-1:123456789012:task-definition/web:3";
        assert_eq!(Arn::parse(text).map(|a| a.to_string()).as_deref(), Some(text));
        for bad in [
            "",
            "arn",
            "arn:aws:ecs",
            "arn:gcp:ecs:r:123456789012:x",
            "arn:aws:ecs:r:1:x",
            "arn:aws:ecs:r:123456789012:",
        ] {
            assert_eq!(Arn::parse(bad), None, "{bad}");
        }
    }
}
