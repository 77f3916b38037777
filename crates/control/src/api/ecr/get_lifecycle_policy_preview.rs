//! GetLifecyclePolicyPreview: the images that the tried policy expires. They are worked out when asked
//! for, as of the time that the preview was started.

use aws_api::Error;
use aws_api::Timestamp;
use aws_api::ecr::values::{image_action_type, lifecycle_policy_preview_status as status};
use aws_api::ecr::{
    GetLifecyclePolicyPreviewRequest, GetLifecyclePolicyPreviewResponse, LifecyclePolicyPreviewResult,
    LifecyclePolicyPreviewSummary, LifecyclePolicyRuleAction, error,
};
use model::Timestamp as Time;

use super::image::{ImageId, has_tag_status};
use super::page;
use super::put_lifecycle_policy::check;
use super::target::Target;
use crate::api::Caller;
use crate::registry::{Registry, Tag};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: GetLifecyclePolicyPreviewRequest,
) -> Result<GetLifecyclePolicyPreviewResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let found = registry.lifecycle_preview(&target.namespace, &target.name).await;
    let preview = found.map_err(|error| target.error(error))?.ok_or_else(|| {
        error::lifecycle_policy_preview_not_found_exception(format!(
            "Lifecycle policy preview does not exist for the repository with name '{}' in the registry with \
             id '{}'",
            target.name, target.namespace.account
        ))
    })?;
    let policy = check(&preview.text)?;
    let started_at = Time(preview.started_at);
    let expiring = registry.expiring_images(&target.namespace, &target.name, &policy, started_at).await;
    let mut expiring = expiring.map_err(|error| target.error(error))?;
    let summary = LifecyclePolicyPreviewSummary {
        expiring_image_total_count: Some(i32::try_from(expiring.len()).unwrap_or(i32::MAX)),
        transitioning_image_total_counts: None,
    };
    let status = input.filter.as_ref().and_then(|filter| filter.tag_status.as_deref());
    expiring.retain(|(image, _)| has_tag_status(image, status));
    if let Some(ids) = &input.image_ids {
        let wanted: Vec<ImageId> = ids.iter().filter_map(|id| ImageId::parse(id).ok()).collect();
        expiring.retain(|(image, _)| {
            wanted.iter().any(|id| {
                id.digest.is_none_or(|digest| digest == image.digest)
                    && id.tag.as_ref().is_none_or(|tag| image.tags.contains(tag))
            })
        });
    }
    expiring.sort_by_key(|(image, _)| image.digest);
    if let Some(after) = page::after(input.next_token.as_deref(), |last| last.parse().ok())? {
        expiring.retain(|(image, _)| image.digest > after);
    }
    let size = page::size(input.max_results);
    let more = expiring.len() > size;
    expiring.truncate(size);
    let next_token = expiring.last().filter(|_| more).map(|(last, _)| page::token(&last.digest.to_string()));
    let results = expiring.into_iter().map(|(image, priority)| LifecyclePolicyPreviewResult {
        image_tags: Some(image.tags.iter().map(Tag::to_string).collect()),
        image_digest: Some(image.digest.to_string()),
        image_pushed_at: Some(Timestamp::from_millis(image.pushed_at)),
        action: Some(LifecyclePolicyRuleAction {
            r#type: Some(image_action_type::EXPIRE.to_owned()),
            target_storage_class: None,
        }),
        applied_rule_priority: Some(i32::try_from(priority).unwrap_or(i32::MAX)),
        storage_class: None,
    });
    Ok(GetLifecyclePolicyPreviewResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        lifecycle_policy_text: Some(preview.text),
        status: Some(status::COMPLETE.to_owned()),
        next_token,
        preview_results: Some(results.collect()),
        summary: Some(summary),
    })
}
