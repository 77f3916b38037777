//! PutImageTagMutability: whether tags can be moved.

use aws_api::Error;
use aws_api::ecr::{PutImageTagMutabilityRequest, PutImageTagMutabilityResponse};

use super::repository::{exclusions_view, mutability_view, parse_mutability};
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: PutImageTagMutabilityRequest,
) -> Result<PutImageTagMutabilityResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let (setting, exclusions) =
        parse_mutability(&input.image_tag_mutability, input.image_tag_mutability_exclusion_filters)?;
    let updated = registry
        .update_repository(&target.namespace, &target.name, |record| {
            record.tag_mutability = setting;
            record.mutability_exclusions.clone_from(&exclusions);
            Ok(())
        })
        .await;
    let record = updated.map_err(|error| target.error(error))?;
    Ok(PutImageTagMutabilityResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        image_tag_mutability: Some(mutability_view(&record)),
        image_tag_mutability_exclusion_filters: exclusions_view(&record),
    })
}
