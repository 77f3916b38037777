//! `ListTagsLogGroup`: lists the tags of a log group by its name (deprecated by AWS for `ListTagsForResource`).

use aws_api::Error;
use aws_api::logs::{ListTagsLogGroupRequest, ListTagsLogGroupResponse};

use super::{Logs, refusal};
use crate::api::Caller;

/// Serves `ListTagsLogGroup`.
///
/// # Errors
/// `ResourceNotFoundException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: ListTagsLogGroupRequest,
) -> Result<ListTagsLogGroupResponse, Error> {
    let group = logs.store.group(&caller.scope(), &input.log_group_name).await.map_err(refusal)?;
    Ok(ListTagsLogGroupResponse { tags: Some(group.tags) })
}
