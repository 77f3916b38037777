//! `networkConfiguration` of a run request.

use aws_api::Error;
use aws_api::ecs::NetworkConfiguration;
use model::task::TaskNetwork;
use model::{SecurityGroupId, SubnetId};

use super::Ecs;
use super::errors::invalid;

const MAX_SUBNETS: usize = 16;
const MAX_SECURITY_GROUPS: usize = 5;

/// The network of a task: subnets and security groups that exist.
pub(super) fn checked(ecs: &Ecs, configuration: Option<&NetworkConfiguration>) -> Result<TaskNetwork, Error> {
    let configuration = configuration.and_then(|c| c.awsvpc_configuration.as_ref()).ok_or_else(|| {
        invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
    })?;
    if configuration.subnets.is_empty() {
        return Err(invalid("subnets can not be empty."));
    }
    if configuration.subnets.len() > MAX_SUBNETS {
        return Err(invalid(format!("subnets can have at most {MAX_SUBNETS} items.")));
    }
    let mut subnets: Vec<SubnetId> = Vec::new();
    for text in &configuration.subnets {
        let subnet = SubnetId::parse(text.clone()).ok().filter(|id| *id == ecs.default_subnet.id);
        let subnet = subnet.ok_or_else(|| {
            invalid(format!(
                "Error retrieving subnet information for [{text}]: The subnet ID '{text}' does not exist (ErrorCode: \
                 InvalidSubnetID.NotFound)"
            ))
        })?;
        if !subnets.contains(&subnet) {
            subnets.push(subnet);
        }
    }
    let groups = configuration.security_groups.as_deref().unwrap_or_default();
    if groups.len() > MAX_SECURITY_GROUPS {
        return Err(invalid(format!("securityGroups can have at most {MAX_SECURITY_GROUPS} items.")));
    }
    let mut security_groups: Vec<SecurityGroupId> = Vec::new();
    for text in groups {
        let group = SecurityGroupId::parse(text.clone()).ok().filter(|id| *id == ecs.default_security_group);
        let group = group.ok_or_else(|| {
            invalid(format!(
                "Error retrieving security group information for [{text}]: The security group '{text}' does not exist \
                 (ErrorCode: InvalidGroup.NotFound)"
            ))
        })?;
        if !security_groups.contains(&group) {
            security_groups.push(group);
        }
    }
    if security_groups.is_empty() {
        security_groups.push(ecs.default_security_group.clone());
    }
    let assign_public_ip = configuration.assign_public_ip.as_deref() == Some("ENABLED");
    Ok(TaskNetwork { subnets, security_groups, assign_public_ip })
}
