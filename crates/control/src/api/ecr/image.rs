//! Images as the API names and shows them.

use aws_api::Timestamp;
use aws_api::ecr::values::{image_failure_code as failure, image_status, tag_status};
use aws_api::ecr::{ImageDetail, ImageFailure, ImageIdentifier};

use super::target::Target;
use crate::registry::record::ImageRecord;
use crate::registry::{Digest, Reference, Registry, RegistryError, Tag};

/// An image id as the messages write it.
pub fn describe_id(id: &ImageIdentifier) -> String {
    let word = |value: &Option<String>| value.clone().unwrap_or("null".to_owned());
    format!("{{imageDigest:'{}', imageTag:'{}'}}", word(&id.image_digest), word(&id.image_tag))
}

/// The image with this digest and tag.
pub fn identifier(digest: &Digest, tag: Option<&Tag>) -> ImageIdentifier {
    ImageIdentifier { image_digest: Some(digest.to_string()), image_tag: tag.map(Tag::to_string) }
}

/// Why an entry of a batch failed.
pub struct Failure {
    pub code: &'static str,
    pub reason: String,
}

impl Failure {
    pub fn new(code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// That there is no such image.
    pub fn not_found() -> Self {
        Self::new(failure::IMAGE_NOT_FOUND, "Requested image not found")
    }

    /// The failure of the entry `id`.
    pub fn of(self, id: ImageIdentifier) -> ImageFailure {
        ImageFailure {
            image_id: Some(id),
            failure_code: Some(self.code.to_owned()),
            failure_reason: Some(self.reason),
        }
    }
}

/// What an image id names: a digest, a tag, or both.
pub struct ImageId {
    pub digest: Option<Digest>,
    pub tag: Option<Tag>,
}

impl ImageId {
    pub fn parse(id: &ImageIdentifier) -> Result<Self, Failure> {
        let digest = id.image_digest.as_deref().map(str::parse).transpose().map_err(|_| {
            let reason =
                "Invalid request parameters: image digest should satisfy the regex 'sha256:[a-f0-9]{64}'";
            Failure::new(failure::INVALID_IMAGE_DIGEST, reason)
        })?;
        let tag = id.image_tag.as_deref().map(str::parse).transpose().map_err(|_| {
            let reason = "Invalid request parameters: image tag should satisfy the regex \
                          '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'";
            Failure::new(failure::INVALID_IMAGE_TAG, reason)
        })?;
        if digest.is_none() && tag.is_none() {
            let reason = "Invalid request parameters: both tag and digest cannot be null";
            return Err(Failure::new(failure::MISSING_DIGEST_AND_TAG, reason));
        }
        Ok(Self { digest, tag })
    }

    fn reference(&self) -> Option<Reference> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(Reference::Tag(tag.clone())),
            (None, Some(digest)) => Some(Reference::Digest(*digest)),
            (None, None) => None,
        }
    }

    /// The image that it names; a failure of the entry, or an error of the whole call.
    pub async fn find(
        &self,
        registry: &Registry,
        target: &Target,
    ) -> Result<Result<ImageRecord, Failure>, aws_api::Error> {
        let Some(reference) = self.reference() else { return Ok(Err(Failure::not_found())) };
        match registry.image(&target.namespace, &target.name, &reference).await {
            Ok(image) if self.digest.is_some_and(|digest| digest != image.digest) => {
                let reason = "Requested image tag does not match the requested image digest";
                Ok(Err(Failure::new(failure::IMAGE_TAG_DOES_NOT_MATCH_DIGEST, reason)))
            }
            Ok(image) => Ok(Ok(image)),
            Err(RegistryError::ImageNotFound { .. }) => Ok(Err(Failure::not_found())),
            Err(error) => Err(target.error(error)),
        }
    }
}

/// Whether the image is among those that a `tagStatus` filter lets through.
pub fn has_tag_status(image: &ImageRecord, status: Option<&str>) -> bool {
    match status {
        Some(tag_status::TAGGED) => !image.tags.is_empty(),
        Some(tag_status::UNTAGGED) => image.tags.is_empty(),
        _ => true,
    }
}

/// Whether an `imageStatus` filter lets images through: all are active, there is no archive.
pub fn shows_active(status: Option<&str>) -> bool {
    !matches!(status, Some("ARCHIVED" | "ACTIVATING"))
}

/// The image as DescribeImages shows it.
pub fn detail(target: &Target, image: &ImageRecord) -> ImageDetail {
    let tags: Vec<String> = image.tags.iter().map(Tag::to_string).collect();
    ImageDetail {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        image_digest: Some(image.digest.to_string()),
        image_tags: Some(tags).filter(|tags| !tags.is_empty()),
        image_size_in_bytes: Some(i64::try_from(image.image_bytes).unwrap_or(i64::MAX)),
        image_pushed_at: Some(Timestamp::from_millis(image.pushed_at)),
        image_manifest_media_type: Some(image.media_type.clone()),
        artifact_media_type: image.artifact_type.clone(),
        last_recorded_pull_time: image.last_pulled_at.map(Timestamp::from_millis),
        subject_manifest_digest: image.subject.map(|subject| subject.to_string()),
        image_status: Some(image_status::ACTIVE.to_owned()),
        ..ImageDetail::default()
    }
}
