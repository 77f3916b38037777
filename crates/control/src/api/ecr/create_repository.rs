//! CreateRepository: a repository with its settings.

use aws_api::Error;
use aws_api::ecr::values::{encryption_type, image_tag_mutability};
use aws_api::ecr::{CreateRepositoryRequest, CreateRepositoryResponse};

use super::error::invalid_parameter;
use super::repository::{parse_mutability, view};
use super::tags;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;
use crate::registry::record::RepositoryRecord;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: CreateRepositoryRequest,
) -> Result<CreateRepositoryResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let word = input.image_tag_mutability.as_deref().unwrap_or(image_tag_mutability::MUTABLE);
    let (tag_mutability, mutability_exclusions) =
        parse_mutability(word, input.image_tag_mutability_exclusion_filters)?;
    let resource_tags = input.tags.unwrap_or_default();
    tags::check(&resource_tags)?;
    let mut record = RepositoryRecord::new(target.name.clone(), registry.now());
    record.tag_mutability = tag_mutability;
    record.mutability_exclusions = mutability_exclusions;
    record.resource_tags = resource_tags.into_iter().map(|tag| (tag.key, tag.value)).collect();
    record.scan_on_push =
        input.image_scanning_configuration.and_then(|scanning| scanning.scan_on_push).unwrap_or(false);
    if let Some(encryption) = input.encryption_configuration {
        if encryption.encryption_type == encryption_type::AES256 && encryption.kms_key.is_some() {
            return Err(invalid_parameter(
                "encryptionConfiguration",
                "KMS key can not be specified when encryption type is AES256",
            ));
        }
        record.encryption_type = encryption.encryption_type;
        record.kms_key = encryption.kms_key;
    }
    let created = registry.create_repository(&target.namespace, &record).await;
    created.map_err(|error| target.error(error))?;
    Ok(CreateRepositoryResponse { repository: Some(view(registry, &target.namespace, &record)) })
}
