//! UntagResource: takes resource tags from a repository.

use aws_api::Error;
use aws_api::ecr::{UntagResourceRequest, UntagResourceResponse};

use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: UntagResourceRequest,
) -> Result<UntagResourceResponse, Error> {
    let target = Target::of_arn(caller, &input.resource_arn)?;
    let updated = registry
        .update_repository(&target.namespace, &target.name, |record| {
            for key in &input.tag_keys {
                record.resource_tags.remove(key);
            }
            Ok(())
        })
        .await;
    updated.map_err(|error| target.error(error))?;
    Ok(UntagResourceResponse {})
}
