//! TagResource: resource tags of a repository.

use aws_api::Error;
use aws_api::ecr::{TagResourceRequest, TagResourceResponse};

use super::tags::{self, MAX_TAGS};
use super::target::Target;
use crate::api::Caller;
use crate::registry::{Registry, RegistryError};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: TagResourceRequest,
) -> Result<TagResourceResponse, Error> {
    let target = Target::of_arn(caller, &input.resource_arn)?;
    tags::check(&input.tags)?;
    let updated = registry
        .update_repository(&target.namespace, &target.name, |record| {
            for tag in &input.tags {
                record.resource_tags.insert(tag.key.clone(), tag.value.clone());
            }
            if record.resource_tags.len() > MAX_TAGS {
                return Err(RegistryError::TooManyResourceTags(MAX_TAGS));
            }
            Ok(())
        })
        .await;
    updated.map_err(|error| target.error(error))?;
    Ok(TagResourceResponse {})
}
