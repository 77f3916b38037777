//! BatchDeleteImage: images by digest, tags by tag; an image goes with its last tag.

use aws_api::Error;
use aws_api::ecr::values::image_failure_code;
use aws_api::ecr::{BatchDeleteImageRequest, BatchDeleteImageResponse, ImageIdentifier};

use super::image::{Failure, ImageId, identifier};
use super::target::Target;
use crate::api::Caller;
use crate::registry::{Registry, RegistryError};

/// Deletes what one entry names and returns the ids of what went.
async fn delete(
    registry: &Registry,
    target: &Target,
    id: &ImageIdentifier,
) -> Result<Result<Vec<ImageIdentifier>, Failure>, Error> {
    let parsed = match ImageId::parse(id) {
        Ok(parsed) => parsed,
        Err(failure) => return Ok(Err(failure)),
    };
    let image = match parsed.find(registry, target).await? {
        Ok(image) => image,
        Err(failure) => return Ok(Err(failure)),
    };
    let (namespace, name) = (&target.namespace, &target.name);
    let outcome = match &parsed.tag {
        Some(tag) => {
            let untagged = registry.untag_image(namespace, name, tag, true).await;
            untagged.map(|untagged| vec![identifier(&untagged.digest, Some(tag))])
        }
        None => registry.delete_image(namespace, name, &image.digest).await.map(|image| {
            if image.tags.is_empty() {
                vec![identifier(&image.digest, None)]
            } else {
                image.tags.iter().map(|tag| identifier(&image.digest, Some(tag))).collect()
            }
        }),
    };
    match outcome {
        Ok(gone) => Ok(Ok(gone)),
        Err(RegistryError::ImageNotFound { .. }) => Ok(Err(Failure::not_found())),
        Err(RegistryError::ImageReferenced(parent)) => Ok(Err(Failure::new(
            image_failure_code::IMAGE_REFERENCED_BY_MANIFEST_LIST,
            format!("Requested image referenced by manifest list: [{parent}]"),
        ))),
        Err(error) => Err(target.error(error)),
    }
}

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: BatchDeleteImageRequest,
) -> Result<BatchDeleteImageResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let found = registry.repository(&target.namespace, &target.name).await;
    found.map_err(|error| target.error(error))?;
    let mut deleted = Vec::new();
    let mut failures = Vec::new();
    // What a manifest list refers to can go after the list: tried again as long as something went.
    let mut remaining = input.image_ids;
    loop {
        let mut referenced = Vec::new();
        let before = deleted.len();
        for id in remaining {
            match delete(registry, &target, &id).await? {
                Ok(gone) => deleted.extend(gone),
                Err(failure) if failure.code == image_failure_code::IMAGE_REFERENCED_BY_MANIFEST_LIST => {
                    referenced.push((id, failure));
                }
                Err(failure) => failures.push(failure.of(id)),
            }
        }
        if referenced.is_empty() {
            break;
        }
        if deleted.len() == before {
            failures.extend(referenced.into_iter().map(|(id, failure)| failure.of(id)));
            break;
        }
        remaining = referenced.into_iter().map(|(id, _)| id).collect();
    }
    Ok(BatchDeleteImageResponse { image_ids: Some(deleted), failures: Some(failures) })
}
