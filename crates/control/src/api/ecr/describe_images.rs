//! DescribeImages: the images of those ids, or all in pages.

use aws_api::Error;
use aws_api::ecr::{DescribeImagesRequest, DescribeImagesResponse};
use std::collections::BTreeMap;

use super::error::{image_not_found, invalid_parameter};
use super::image::{ImageId, describe_id, detail, has_tag_status, shows_active};
use super::page;
use super::target::Target;
use crate::api::Caller;
use crate::registry::{Digest, Registry};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: DescribeImagesRequest,
) -> Result<DescribeImagesResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let fail = |error| target.error(error);
    registry.repository(&target.namespace, &target.name).await.map_err(fail)?;
    if let Some(ids) = input.image_ids {
        let mut images = BTreeMap::new();
        for id in ids {
            let missing = || image_not_found(&target, &describe_id(&id));
            let parsed =
                ImageId::parse(&id).map_err(|failure| invalid_parameter("imageIds", failure.reason))?;
            let image = parsed.find(registry, &target).await?.map_err(|_| missing())?;
            images.insert(image.digest, detail(&target, &image));
        }
        let image_details = Some(images.into_values().collect());
        return Ok(DescribeImagesResponse { image_details, next_token: None });
    }
    let filter = input.filter.unwrap_or_default();
    let mut after: Option<Digest> = page::after(input.next_token.as_deref(), |last| last.parse().ok())?;
    let size = page::size(input.max_results);
    let mut details = Vec::new();
    let mut next_token = None;
    while shows_active(filter.image_status.as_deref()) {
        let found = registry.images(&target.namespace, &target.name, after.as_ref(), size).await;
        let (images, more) = found.map_err(fail)?;
        after = images.last().map(|image| image.digest);
        for image in &images {
            if !has_tag_status(image, filter.tag_status.as_deref()) {
                continue;
            }
            if details.len() == size {
                // There is one more than fits: the next page begins after the last that does.
                next_token = details.last().map(|(digest, _): &(Digest, _)| page::token(&digest.to_string()));
                break;
            }
            details.push((image.digest, detail(&target, image)));
        }
        if next_token.is_some() || !more {
            break;
        }
    }
    let image_details = details.into_iter().map(|(_, detail)| detail).collect();
    Ok(DescribeImagesResponse { image_details: Some(image_details), next_token })
}
