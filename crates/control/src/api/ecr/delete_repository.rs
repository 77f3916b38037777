//! DeleteRepository: a repository, with its images only by force.

use aws_api::Error;
use aws_api::ecr::{DeleteRepositoryRequest, DeleteRepositoryResponse};

use super::repository::view;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: DeleteRepositoryRequest,
) -> Result<DeleteRepositoryResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let force = input.force.unwrap_or(false);
    let deleted = registry.delete_repository(&target.namespace, &target.name, force).await;
    let record = deleted.map_err(|error| target.error(error))?;
    Ok(DeleteRepositoryResponse { repository: Some(view(registry, &target.namespace, &record)) })
}
