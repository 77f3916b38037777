//! `TagLogGroup`: tags a log group by its name (deprecated by AWS for `TagResource`).

use aws_api::Error;
use aws_api::logs::{TagLogGroupRequest, TagLogGroupResponse};

use super::{Logs, group, refusal};
use crate::api::Caller;

/// Serves `TagLogGroup`.
///
/// # Errors
/// `ResourceNotFoundException`; `InvalidParameterException` for reserved keys.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: TagLogGroupRequest,
) -> Result<TagLogGroupResponse, Error> {
    group::check_tags(&input.tags)?;
    logs.store.tag_group(&caller.scope(), &input.log_group_name, input.tags).await.map_err(refusal)?;
    Ok(TagLogGroupResponse {})
}
