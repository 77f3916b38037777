//! `ListTagsForResource`: lists the tags of a log group by its ARN.

use aws_api::Error;
use aws_api::logs::{ListTagsForResourceRequest, ListTagsForResourceResponse};

use super::{Logs, group, refusal};
use crate::api::Caller;

/// Serves `ListTagsForResource`.
///
/// # Errors
/// `ResourceNotFoundException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: ListTagsForResourceRequest,
) -> Result<ListTagsForResourceResponse, Error> {
    let name = group::name_of(caller, &input.resource_arn)?;
    let group = logs.store.group(&caller.scope(), &name).await.map_err(refusal)?;
    Ok(ListTagsForResourceResponse { tags: Some(group.tags) })
}
