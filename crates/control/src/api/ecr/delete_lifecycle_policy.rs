//! DeleteLifecyclePolicy: the policy, and what it was.

use aws_api::Error;
use aws_api::Timestamp;
use aws_api::ecr::{DeleteLifecyclePolicyRequest, DeleteLifecyclePolicyResponse};

use super::error::lifecycle_policy_not_found;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: DeleteLifecyclePolicyRequest,
) -> Result<DeleteLifecyclePolicyResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let found = registry.lifecycle_policy(&target.namespace, &target.name).await;
    let policy = found.map_err(|error| target.error(error))?;
    let policy = policy.ok_or_else(|| lifecycle_policy_not_found(&target))?;
    let deleted = registry.set_lifecycle_policy(&target.namespace, &target.name, None).await;
    deleted.map_err(|error| target.error(error))?;
    Ok(DeleteLifecyclePolicyResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        lifecycle_policy_text: Some(policy.text),
        last_evaluated_at: policy.last_evaluated_at.map(Timestamp::from_millis),
    })
}
