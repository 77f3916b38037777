//! PutLifecyclePolicy: the policy that expires images.

use aws_api::Error;
use aws_api::ecr::{PutLifecyclePolicyRequest, PutLifecyclePolicyResponse};

use super::error::invalid_parameter;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;
use crate::registry::lifecycle::Policy;
use crate::registry::record::LifecyclePolicyRecord;

/// Checks a policy document, with ECR's error.
pub fn check(text: &str) -> Result<Policy, Error> {
    Policy::parse(text).map_err(|reason| {
        invalid_parameter("LifecyclePolicyText", format!("Lifecycle policy validation failure: {reason}"))
    })
}

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: PutLifecyclePolicyRequest,
) -> Result<PutLifecyclePolicyResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    check(&input.lifecycle_policy_text)?;
    let record = LifecyclePolicyRecord { text: input.lifecycle_policy_text, last_evaluated_at: None };
    let put = registry.set_lifecycle_policy(&target.namespace, &target.name, Some(&record)).await;
    put.map_err(|error| target.error(error))?;
    Ok(PutLifecyclePolicyResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        lifecycle_policy_text: Some(record.text),
    })
}
