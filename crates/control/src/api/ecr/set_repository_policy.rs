//! SetRepositoryPolicy: the repository's resource policy, kept and shown.

use aws_api::Error;
use aws_api::ecr::{SetRepositoryPolicyRequest, SetRepositoryPolicyResponse};

use super::error::invalid_parameter;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;
use crate::registry::record::RepositoryPolicyRecord;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: SetRepositoryPolicyRequest,
) -> Result<SetRepositoryPolicyResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let document: Option<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(&input.policy_text).ok();
    if !document.is_some_and(|document| document.contains_key("Statement")) {
        return Err(invalid_parameter("PolicyText", "Invalid repository policy provided"));
    }
    let record = RepositoryPolicyRecord { text: input.policy_text };
    let set = registry.set_repository_policy(&target.namespace, &target.name, Some(&record)).await;
    set.map_err(|error| target.error(error))?;
    Ok(SetRepositoryPolicyResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        policy_text: Some(record.text),
    })
}
