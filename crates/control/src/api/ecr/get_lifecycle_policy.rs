//! GetLifecyclePolicy: the policy, and when it was last applied.

use aws_api::Error;
use aws_api::Timestamp;
use aws_api::ecr::{GetLifecyclePolicyRequest, GetLifecyclePolicyResponse};

use super::error::lifecycle_policy_not_found;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: GetLifecyclePolicyRequest,
) -> Result<GetLifecyclePolicyResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let found = registry.lifecycle_policy(&target.namespace, &target.name).await;
    let policy = found.map_err(|error| target.error(error))?;
    let policy = policy.ok_or_else(|| lifecycle_policy_not_found(&target))?;
    Ok(GetLifecyclePolicyResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        lifecycle_policy_text: Some(policy.text),
        last_evaluated_at: policy.last_evaluated_at.map(Timestamp::from_millis),
    })
}
