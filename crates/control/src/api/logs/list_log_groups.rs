//! `ListLogGroups`: lists log groups by name, briefly.

use aws_api::Error;
use aws_api::logs::{ListLogGroupsRequest, ListLogGroupsResponse, LogGroupSummary};

use super::{Logs, group, page_size, refusal};
use crate::api::Caller;
use crate::telemetry::logs::{GroupQuery, NamePattern};

/// Serves `ListLogGroups`.
///
/// # Errors
/// `InvalidParameterException` for a made-up token.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: ListLogGroupsRequest,
) -> Result<ListLogGroupsResponse, Error> {
    // There are no data sources and no field indexes here, so no group has one.
    if input.data_sources.is_some() || input.field_index_names.is_some() {
        return Ok(ListLogGroupsResponse { log_groups: Some(Vec::new()), next_token: None });
    }
    // The model's pattern: names or their beginnings (`^`), separated by `|`.
    let names = match input.log_group_name_pattern {
        Some(pattern) => NamePattern::AnyOf(pattern.split('|').map(str::to_owned).collect()),
        None => NamePattern::Any,
    };
    let tags = input.log_group_tags.unwrap_or_default();
    let query = GroupQuery {
        names,
        class: input.log_group_class,
        tags: tags.into_iter().map(|tag| (tag.key, tag.values.unwrap_or_default())).collect(),
        token: input.next_token,
        limit: page_size(input.limit, 50),
    };
    let page = logs.store.describe_groups(&caller.scope(), query).await.map_err(refusal)?;
    let summaries = page.groups.into_iter().map(|group| LogGroupSummary {
        log_group_arn: Some(group::arn(caller, &group.name)),
        log_group_name: Some(group.name),
        log_group_class: Some(group.class),
    });
    Ok(ListLogGroupsResponse { log_groups: Some(summaries.collect()), next_token: page.next_token })
}
