//! `TagResource`: tags a log group by its ARN.

use aws_api::Error;
use aws_api::logs::{TagResourceRequest, TagResourceResponse};

use super::{Logs, group, refusal};
use crate::api::Caller;

/// Serves `TagResource`.
///
/// # Errors
/// `ResourceNotFoundException`, `TooManyTagsException`; `InvalidParameterException` for reserved keys.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: TagResourceRequest,
) -> Result<TagResourceResponse, Error> {
    group::check_tags(&input.tags)?;
    let name = group::name_of(caller, &input.resource_arn)?;
    logs.store.tag_group(&caller.scope(), &name, input.tags).await.map_err(refusal)?;
    Ok(TagResourceResponse {})
}
