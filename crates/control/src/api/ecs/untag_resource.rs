//! UntagResource.

use aws_api::Error;
use aws_api::ecs::{UntagResourceRequest, UntagResourceResponse};

use super::{Caller, Ecs, tag_target, tags};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: UntagResourceRequest,
) -> Result<UntagResourceResponse, Error> {
    tag_target::update(ecs, caller, &input.resource_arn, |own| tags::remove(own, &input.tag_keys)).await?;
    Ok(UntagResourceResponse {})
}
