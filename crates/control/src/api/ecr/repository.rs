//! Repositories as the API shows them, and the settings that several operations take.

use aws_api::ecr::values::{image_tag_mutability as mutability, image_tag_mutability_exclusion_filter_type};
use aws_api::ecr::{
    EncryptionConfiguration, ImageScanningConfiguration, ImageTagMutabilityExclusionFilter, Repository,
};
use aws_api::{Error, Timestamp};
use model::arn::Arn;

use super::error::invalid_parameter;
use crate::registry::record::{RepositoryRecord, TagMutability};
use crate::registry::{Namespace, Registry};

/// The repository as the API shows it.
pub fn view(registry: &Registry, namespace: &Namespace, record: &RepositoryRecord) -> Repository {
    let arn = Arn::new("ecr", &namespace.region, &namespace.account, format!("repository/{}", record.name));
    Repository {
        repository_arn: Some(arn.to_string()),
        registry_id: Some(namespace.account.to_string()),
        repository_name: Some(record.name.to_string()),
        repository_uri: Some(registry.repository_uri(&record.name)),
        created_at: Some(Timestamp::from_millis(record.created_at)),
        image_tag_mutability: Some(mutability_view(record)),
        image_tag_mutability_exclusion_filters: exclusions_view(record),
        image_scanning_configuration: Some(ImageScanningConfiguration {
            scan_on_push: Some(record.scan_on_push),
        }),
        encryption_configuration: Some(EncryptionConfiguration {
            encryption_type: record.encryption_type.clone(),
            kms_key: record.kms_key.clone(),
        }),
    }
}

/// `imageTagMutability`: one word for the setting and whether it has exclusions.
pub fn mutability_view(record: &RepositoryRecord) -> String {
    let excluding = !record.mutability_exclusions.is_empty();
    let word = match (record.tag_mutability, excluding) {
        (TagMutability::Mutable, false) => mutability::MUTABLE,
        (TagMutability::Mutable, true) => mutability::MUTABLE_WITH_EXCLUSION,
        (TagMutability::Immutable, false) => mutability::IMMUTABLE,
        (TagMutability::Immutable, true) => mutability::IMMUTABLE_WITH_EXCLUSION,
    };
    word.to_owned()
}

/// `imageTagMutabilityExclusionFilters`, left out if there are none.
pub fn exclusions_view(record: &RepositoryRecord) -> Option<Vec<ImageTagMutabilityExclusionFilter>> {
    let filters = record.mutability_exclusions.iter().map(|filter| ImageTagMutabilityExclusionFilter {
        filter_type: image_tag_mutability_exclusion_filter_type::WILDCARD.to_owned(),
        filter: filter.clone(),
    });
    Some(filters.collect::<Vec<_>>()).filter(|filters| !filters.is_empty())
}

/// The setting and its exclusions, which have to be there exactly if the word says so.
pub fn parse_mutability(
    word: &str,
    filters: Option<Vec<ImageTagMutabilityExclusionFilter>>,
) -> Result<(TagMutability, Vec<String>), Error> {
    let parameter = "imageTagMutabilityExclusionFilters";
    let (setting, excluding) = match word {
        mutability::IMMUTABLE => (TagMutability::Immutable, false),
        mutability::IMMUTABLE_WITH_EXCLUSION => (TagMutability::Immutable, true),
        mutability::MUTABLE_WITH_EXCLUSION => (TagMutability::Mutable, true),
        _ => (TagMutability::Mutable, false),
    };
    let filters: Vec<String> = filters.unwrap_or_default().into_iter().map(|filter| filter.filter).collect();
    if excluding && filters.is_empty() {
        return Err(invalid_parameter(
            parameter,
            format!("filters are required when imageTagMutability is {word}"),
        ));
    }
    if !excluding && !filters.is_empty() {
        let message = format!("filters cannot be specified when imageTagMutability is {word}");
        return Err(invalid_parameter(parameter, message));
    }
    // User guide, "Image tag mutability": at most two wildcards in a filter.
    if filters.iter().any(|filter| filter.matches('*').count() > 2) {
        return Err(invalid_parameter(parameter, "a filter has at most 2 wildcards"));
    }
    Ok((setting, filters))
}
