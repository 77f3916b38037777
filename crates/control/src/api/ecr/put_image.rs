//! PutImage: a manifest whose layers are there already.

use aws_api::Error;
use aws_api::ecr::{Image, PutImageRequest, PutImageResponse, error};

use super::error::invalid_parameter;
use super::image::identifier;
use super::target::Target;
use crate::api::Caller;
use crate::registry::name::NameError;
use crate::registry::{Digest, Registry, RegistryError, Tag};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: PutImageRequest,
) -> Result<PutImageResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let tag = input.image_tag.as_deref().map(str::parse::<Tag>).transpose();
    let tag = tag.map_err(|error: NameError| invalid_parameter("imageTag", error))?;
    let digest = input.image_digest.as_deref().map(str::parse::<Digest>).transpose();
    let digest = digest.map_err(|error: NameError| invalid_parameter("imageDigest", error))?;
    let (namespace, name) = (&target.namespace, &target.name);
    registry.repository(namespace, name).await.map_err(|error| target.error(error))?;
    let manifest = bytes::Bytes::from(input.image_manifest.clone());
    let media_type = input.image_manifest_media_type.as_deref();
    let pushed = registry.push_manifest(namespace, name, manifest, media_type, tag.as_ref(), digest).await;
    let (_, pushed) = pushed.map_err(|error| match error {
        RegistryError::DigestMismatch { expected, .. } => error::image_digest_does_not_match_exception(format!(
            "The specified image digest '{expected}' does not match the digest calculated from the image manifest"
        )),
        error => target.error(error),
    })?;
    if !pushed.changed {
        let tagged = tag.map(|tag| format!(" and tag '{tag}'")).unwrap_or_default();
        return Err(error::image_already_exists_exception(format!(
            "Image with digest '{}'{tagged} already exists in the repository with name '{name}' in registry \
             with id '{}'",
            pushed.image.digest, namespace.account
        )));
    }
    Ok(PutImageResponse {
        image: Some(Image {
            registry_id: Some(target.registry_id()),
            repository_name: Some(target.repository_name()),
            image_id: Some(identifier(&pushed.image.digest, tag.as_ref())),
            image_manifest: Some(input.image_manifest),
            image_manifest_media_type: Some(pushed.image.media_type),
        }),
    })
}
