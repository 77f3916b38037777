//! DeleteRepositoryPolicy: the repository's resource policy, and what it was.

use aws_api::Error;
use aws_api::ecr::{DeleteRepositoryPolicyRequest, DeleteRepositoryPolicyResponse};

use super::error::repository_policy_not_found;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: DeleteRepositoryPolicyRequest,
) -> Result<DeleteRepositoryPolicyResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let found = registry.repository_policy(&target.namespace, &target.name).await;
    let policy = found.map_err(|error| target.error(error))?;
    let policy = policy.ok_or_else(|| repository_policy_not_found(&target))?;
    let deleted = registry.set_repository_policy(&target.namespace, &target.name, None).await;
    deleted.map_err(|error| target.error(error))?;
    Ok(DeleteRepositoryPolicyResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        policy_text: Some(policy.text),
    })
}
