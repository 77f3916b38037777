//! StartLifecyclePolicyPreview: tries a policy, the given one or the repository's, without expiring anything.

use aws_api::Error;
use aws_api::ecr::values::lifecycle_policy_preview_status as status;
use aws_api::ecr::{StartLifecyclePolicyPreviewRequest, StartLifecyclePolicyPreviewResponse};

use super::error::lifecycle_policy_not_found;
use super::put_lifecycle_policy::check;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;
use crate::registry::record::LifecyclePreviewRecord;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: StartLifecyclePolicyPreviewRequest,
) -> Result<StartLifecyclePolicyPreviewResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let text = match input.lifecycle_policy_text {
        Some(text) => {
            check(&text)?;
            text
        }
        None => {
            let found = registry.lifecycle_policy(&target.namespace, &target.name).await;
            let policy = found.map_err(|error| target.error(error))?;
            policy.ok_or_else(|| lifecycle_policy_not_found(&target))?.text
        }
    };
    let record = LifecyclePreviewRecord { text, started_at: registry.now() };
    let kept = registry.set_lifecycle_preview(&target.namespace, &target.name, &record).await;
    kept.map_err(|error| target.error(error))?;
    Ok(StartLifecyclePolicyPreviewResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        lifecycle_policy_text: Some(record.text),
        status: Some(status::IN_PROGRESS.to_owned()),
    })
}
