//! Amazon ECR: the API beside the registry (`crate::registry`). One file per operation.
//!
//! What the service model says of each input (required, lengths, patterns, enumerations) has been checked
//! before a handler sees it.

mod error;
mod image;
mod page;
mod repository;
mod tags;
mod target;

mod batch_check_layer_availability;
mod batch_delete_image;
mod batch_get_image;
mod complete_layer_upload;
mod create_repository;
mod delete_lifecycle_policy;
mod delete_repository;
mod delete_repository_policy;
mod describe_images;
mod describe_repositories;
mod get_authorization_token;
mod get_download_url_for_layer;
mod get_lifecycle_policy;
mod get_lifecycle_policy_preview;
mod get_repository_policy;
mod initiate_layer_upload;
mod list_images;
mod list_tags_for_resource;
mod put_image;
mod put_image_scanning_configuration;
mod put_image_tag_mutability;
mod put_lifecycle_policy;
mod set_repository_policy;
mod start_lifecycle_policy_preview;
mod tag_resource;
mod untag_resource;
mod upload_layer_part;

use aws_api::Routed;

use crate::api::answer::serve;
use crate::api::{Answer, Caller};
use crate::registry::Registry;

/// Serves one ECR request.
///
/// # Errors
/// What the client did wrong, in the service's words.
pub async fn dispatch(
    registry: &Registry,
    caller: &Caller,
    routed: &Routed,
    body: &[u8],
) -> Result<Answer, aws_api::Error> {
    serve!(aws_api::ecr::operation, registry, caller, routed, body, {
        BatchCheckLayerAvailability => batch_check_layer_availability,
        BatchDeleteImage => batch_delete_image,
        BatchGetImage => batch_get_image,
        CompleteLayerUpload => complete_layer_upload,
        CreateRepository => create_repository,
        DeleteLifecyclePolicy => delete_lifecycle_policy,
        DeleteRepository => delete_repository,
        DeleteRepositoryPolicy => delete_repository_policy,
        DescribeImages => describe_images,
        DescribeRepositories => describe_repositories,
        GetAuthorizationToken => get_authorization_token,
        GetDownloadUrlForLayer => get_download_url_for_layer,
        GetLifecyclePolicy => get_lifecycle_policy,
        GetLifecyclePolicyPreview => get_lifecycle_policy_preview,
        GetRepositoryPolicy => get_repository_policy,
        InitiateLayerUpload => initiate_layer_upload,
        ListImages => list_images,
        ListTagsForResource => list_tags_for_resource,
        PutImage => put_image,
        PutImageScanningConfiguration => put_image_scanning_configuration,
        PutImageTagMutability => put_image_tag_mutability,
        PutLifecyclePolicy => put_lifecycle_policy,
        SetRepositoryPolicy => set_repository_policy,
        StartLifecyclePolicyPreview => start_lifecycle_policy_preview,
        TagResource => tag_resource,
        UntagResource => untag_resource,
        UploadLayerPart => upload_layer_part,
    })
}
