//! `DescribeLogGroups`: lists log groups by name.

use aws_api::Error;
use aws_api::logs::{DescribeLogGroupsRequest, DescribeLogGroupsResponse, LogGroup};

use super::{Logs, group, invalid, page_size, refusal};
use crate::api::Caller;
use crate::telemetry::logs::{self, GroupQuery, LogError, NamePattern};

/// Serves `DescribeLogGroups`.
///
/// # Errors
/// `InvalidParameterException` for parameters that exclude each other, and for a made-up token.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: DescribeLogGroupsRequest,
) -> Result<DescribeLogGroupsResponse, Error> {
    if let Some(identifiers) = &input.log_group_identifiers {
        return described(logs, caller, &input, identifiers).await;
    }
    let names = match (input.log_group_name_prefix, input.log_group_name_pattern) {
        (Some(_), Some(_)) => {
            return Err(invalid(
                "LogGroupNamePrefix and LogGroupNamePattern are mutually exclusive parameters.",
            ));
        }
        (Some(prefix), None) => NamePattern::Prefix(prefix),
        (None, Some(part)) => NamePattern::Contains(part),
        (None, None) => NamePattern::Any,
    };
    let query = GroupQuery {
        names,
        class: input.log_group_class,
        tags: Vec::new(),
        token: input.next_token,
        limit: page_size(input.limit, 50),
    };
    let page = logs.store.describe_groups(&caller.scope(), query).await.map_err(refusal)?;
    Ok(DescribeLogGroupsResponse {
        log_groups: Some(page.groups.into_iter().map(|group| wire(caller, group)).collect()),
        next_token: page.next_token,
    })
}

/// The groups that are named; those that do not exist are left out.
async fn described(
    logs: &Logs,
    caller: &Caller,
    input: &DescribeLogGroupsRequest,
    identifiers: &[String],
) -> Result<DescribeLogGroupsResponse, Error> {
    if input.log_group_name_prefix.is_some()
        || input.log_group_name_pattern.is_some()
        || input.log_group_class.is_some()
        || input.next_token.is_some()
    {
        return Err(invalid("LogGroupIdentifiers and other parameters are mutually exclusive."));
    }
    let mut found = Vec::new();
    for identifier in identifiers {
        let name = group::name_of(caller, identifier)?;
        match logs.store.group(&caller.scope(), &name).await {
            Ok(group) => found.push(wire(caller, group)),
            Err(LogError::GroupNotFound) => {}
            Err(failure) => return Err(refusal(failure)),
        }
    }
    Ok(DescribeLogGroupsResponse { log_groups: Some(found), next_token: None })
}

fn wire(caller: &Caller, group: logs::LogGroup) -> LogGroup {
    let arn = group::arn(caller, &group.name);
    LogGroup {
        log_group_name: Some(group.name),
        creation_time: Some(group.created_at),
        retention_in_days: group.retention_days.and_then(|days| i32::try_from(days).ok()),
        metric_filter_count: Some(0),
        arn: Some(format!("{arn}:*")),
        stored_bytes: Some(i64::try_from(group.stored_bytes).unwrap_or(i64::MAX)),
        kms_key_id: group.kms_key_id,
        log_group_class: Some(group.class),
        log_group_arn: Some(arn),
        deletion_protection_enabled: Some(group.deletion_protection),
        ..LogGroup::default()
    }
}
