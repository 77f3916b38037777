//! ListTagsForResource: resource tags of a repository.

use aws_api::Error;
use aws_api::ecr::{ListTagsForResourceRequest, ListTagsForResourceResponse, Tag};

use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: ListTagsForResourceRequest,
) -> Result<ListTagsForResourceResponse, Error> {
    let target = Target::of_arn(caller, &input.resource_arn)?;
    let record = registry.repository(&target.namespace, &target.name).await;
    let record = record.map_err(|error| target.error(error))?;
    let tags = record.resource_tags.into_iter().map(|(key, value)| Tag { key, value });
    Ok(ListTagsForResourceResponse { tags: Some(tags.collect()) })
}
