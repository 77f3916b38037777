//! The registry's errors in ECR's words.

use std::fmt::Display;

use aws_api::Error;
use aws_api::ecr::error as ecr;

use super::target::{Target, repository_not_found};
use crate::registry::{Digest, RegistryError};

/// That a parameter is not as it has to be.
pub fn invalid_parameter(parameter: &str, constraint: impl Display) -> Error {
    ecr::invalid_parameter_exception(format!(
        "Invalid parameter at '{parameter}' failed to satisfy constraint: '{constraint}'"
    ))
}

/// That there is no such image; `image_id` is as [`super::image::describe_id`] writes it.
pub fn image_not_found(target: &Target, image_id: &str) -> Error {
    ecr::image_not_found_exception(format!(
        "The image with imageId {image_id} does not exist within the repository with name '{}' in the \
         registry with id '{}'",
        target.name, target.namespace.account
    ))
}

/// That the repository has no lifecycle policy.
pub fn lifecycle_policy_not_found(target: &Target) -> Error {
    ecr::lifecycle_policy_not_found_exception(format!(
        "Lifecycle policy does not exist for the repository with name '{}' in the registry with id '{}'",
        target.name, target.namespace.account
    ))
}

/// That the repository has no resource policy.
pub fn repository_policy_not_found(target: &Target) -> Error {
    ecr::repository_policy_not_found_exception(format!(
        "Repository policy does not exist for the repository with name '{}' in the registry with id '{}'",
        target.name, target.namespace.account
    ))
}

/// A failure that is not the client's, logged here.
pub fn server_error(error: RegistryError) -> Error {
    let source: &dyn std::error::Error = match &error {
        RegistryError::Files(source) => source,
        RegistryError::Store(source) => source.as_ref(),
        error => error,
    };
    tracing::error!(error = source, "the registry failed");
    ecr::server_exception(error.to_string())
}

fn list(digests: &[Digest]) -> String {
    let digests: Vec<String> = digests.iter().map(Digest::to_string).collect();
    format!("[{}]", digests.join(", "))
}

impl Target {
    /// The error as ECR reports it for this repository.
    pub fn error(&self, error: RegistryError) -> Error {
        let (name, id) = (&self.name, &self.namespace.account);
        match error {
            RegistryError::RepositoryNotFound(_) => repository_not_found(name.as_str(), id.as_str()),
            RegistryError::RepositoryExists(_) => ecr::repository_already_exists_exception(format!(
                "The repository with name '{name}' already exists in the registry with id '{id}'"
            )),
            RegistryError::RepositoryNotEmpty(_) => ecr::repository_not_empty_exception(format!(
                "The repository with name '{name}' in registry with id '{id}' cannot be deleted because it \
                 still contains images"
            )),
            RegistryError::ImageNotFound { reference, .. } => image_not_found(self, &reference),
            error @ RegistryError::TagImmutable { .. } => {
                ecr::image_tag_already_exists_exception(error.to_string())
            }
            RegistryError::BlobUnknown(digest) => ecr::layers_not_found_exception(format!(
                "The layer with digest '{digest}' does not exist within the repository with name '{name}' in \
                 the registry with id '{id}'"
            )),
            RegistryError::LayersNotFound(digests) => ecr::layers_not_found_exception(format!(
                "Layers with digests '{}' required for pushing image into repository with name '{name}' in \
                 the registry with id '{id}' do not exist",
                list(&digests)
            )),
            RegistryError::ReferencedImagesNotFound(digests) => {
                ecr::referenced_images_not_found_exception(format!(
                    "Images with digests '{}' required for pushing image into repository with name '{name}' \
                     in the registry with id '{id}' do not exist",
                    list(&digests)
                ))
            }
            error @ (RegistryError::ManifestInvalid(_)
            | RegistryError::ManifestUnsupported(_)
            | RegistryError::ManifestTooLarge(_)) => invalid_parameter("imageManifest", error),
            error @ RegistryError::DigestMismatch { .. } => ecr::invalid_layer_exception(error.to_string()),
            RegistryError::UploadUnknown(upload) => ecr::upload_not_found_exception(format!(
                "The upload with ID '{upload}' does not exist for the repository with name '{name}' in the \
                 registry with id '{id}'"
            )),
            RegistryError::OffsetMismatch { expected } => {
                let error = ecr::invalid_layer_part_exception(format!(
                    "The layer part does not begin at byte {expected}, where the last one ended"
                ));
                let error = error.with_field("registryId", id.as_str());
                let error = error.with_field("repositoryName", name.as_str());
                match expected.checked_sub(1) {
                    Some(last) => error.with_field("lastValidByteReceived", last),
                    None => error,
                }
            }
            error @ (RegistryError::TooManyTags(_)
            | RegistryError::TooManyLists(_)
            | RegistryError::TooManyUploads(_)
            | RegistryError::BlobTooLarge(_)) => ecr::limit_exceeded_exception(error.to_string()),
            error @ RegistryError::TooManyResourceTags(_) => ecr::too_many_tags_exception(error.to_string()),
            error @ (RegistryError::ImageReferenced(_)
            | RegistryError::BlobReferenced(_)
            | RegistryError::SizeMismatch { .. }
            | RegistryError::UploadBusy(_)
            | RegistryError::BodyInterrupted) => ecr::invalid_parameter_exception(error.to_string()),
            error @ (RegistryError::Contended
            | RegistryError::DiskFull
            | RegistryError::Files(_)
            | RegistryError::Store(_)) => server_error(error),
        }
    }
}
