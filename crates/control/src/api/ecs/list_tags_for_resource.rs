//! ListTagsForResource.

use aws_api::Error;
use aws_api::ecs::{ListTagsForResourceRequest, ListTagsForResourceResponse};

use super::{Caller, Ecs, tag_target, tags};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: ListTagsForResourceRequest,
) -> Result<ListTagsForResourceResponse, Error> {
    let own = tag_target::tags(ecs, caller, &input.resource_arn).await?;
    Ok(ListTagsForResourceResponse { tags: Some(tags::to_wire(&own)) })
}
