//! BatchGetImage: manifests.

use aws_api::Error;
use aws_api::ecr::{BatchGetImageRequest, BatchGetImageResponse, Image};

use super::image::{Failure, ImageId, identifier};
use super::target::Target;
use crate::api::Caller;
use crate::registry::{Registry, Tag};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: BatchGetImageRequest,
) -> Result<BatchGetImageResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let fail = |error| target.error(error);
    registry.repository(&target.namespace, &target.name).await.map_err(fail)?;
    let mut images = Vec::new();
    let mut failures = Vec::new();
    for id in input.image_ids {
        let parsed = match ImageId::parse(&id) {
            Ok(parsed) => parsed,
            Err(failure) => {
                failures.push(failure.of(id));
                continue;
            }
        };
        let image = match parsed.find(registry, &target).await? {
            Ok(image) => image,
            Err(failure) => {
                failures.push(failure.of(id));
                continue;
            }
        };
        if input.accepted_media_types.as_ref().is_some_and(|accepted| !accepted.contains(&image.media_type)) {
            failures.push(Failure::not_found().of(id));
            continue;
        }
        let bytes = registry.manifest_bytes(&image).await.map_err(fail)?;
        registry.note_pull(&target.namespace, &target.name, &image).await;
        let tag: Option<&Tag> = parsed.tag.as_ref();
        images.push(Image {
            registry_id: Some(target.registry_id()),
            repository_name: Some(target.repository_name()),
            image_id: Some(identifier(&image.digest, tag)),
            // What is stored was read as JSON, which is UTF-8.
            image_manifest: Some(String::from_utf8_lossy(&bytes).into_owned()),
            image_manifest_media_type: Some(image.media_type),
        });
    }
    Ok(BatchGetImageResponse { images: Some(images), failures: Some(failures) })
}
