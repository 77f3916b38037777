//! TagResource.

use aws_api::Error;
use aws_api::ecs::{TagResourceRequest, TagResourceResponse};

use super::{Caller, Ecs, tag_target, tags};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: TagResourceRequest,
) -> Result<TagResourceResponse, Error> {
    let more = tags::checked(Some(&input.tags))?;
    tag_target::update(ecs, caller, &input.resource_arn, |own| tags::add(own, &more)).await?;
    Ok(TagResourceResponse {})
}
