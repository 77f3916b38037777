//! ListImages: the images' ids, one for each tag, in pages.

use aws_api::Error;
use aws_api::ecr::{ListImagesRequest, ListImagesResponse};

use super::image::{has_tag_status, identifier, shows_active};
use super::page;
use super::target::Target;
use crate::api::Caller;
use crate::registry::record::ImageRecord;
use crate::registry::{Digest, Registry, Tag};

/// The image's entries in the list: one for each tag, or one without.
fn entries_of(image: &ImageRecord) -> impl Iterator<Item = (Digest, Option<Tag>)> {
    let untagged = image.tags.is_empty().then_some((image.digest, None));
    image.tags.iter().map(|tag| (image.digest, Some(tag.clone()))).chain(untagged)
}

fn parse_token(text: &str) -> Option<(Digest, Option<Tag>)> {
    let (digest, tag) = text.split_once(' ')?;
    let tag = if tag.is_empty() { None } else { Some(tag.parse().ok()?) };
    Some((digest.parse().ok()?, tag))
}

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: ListImagesRequest,
) -> Result<ListImagesResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let fail = |error| target.error(error);
    registry.repository(&target.namespace, &target.name).await.map_err(fail)?;
    let filter = input.filter.unwrap_or_default();
    let mut after = page::after(input.next_token.as_deref(), parse_token)?;
    let size = page::size(input.max_results);
    let mut entries: Vec<(Digest, Option<Tag>)> = Vec::new();
    // One entry more than the page has, to know whether there is a next.
    while entries.len() <= size && shows_active(filter.image_status.as_deref()) {
        let mut images = Vec::new();
        // The last page may have ended in the middle of an image's tags.
        if let Some((digest, Some(_))) = &after {
            let reference = crate::registry::Reference::Digest(*digest);
            images.extend(registry.image(&target.namespace, &target.name, &reference).await.ok());
        }
        let last = after.as_ref().map(|(digest, _)| *digest);
        let found = registry.images(&target.namespace, &target.name, last.as_ref(), size + 1).await;
        let (page, more) = found.map_err(fail)?;
        images.extend(page);
        for image in images.iter().filter(|image| has_tag_status(image, filter.tag_status.as_deref())) {
            entries
                .extend(entries_of(image).filter(|entry| after.as_ref().is_none_or(|after| entry > after)));
        }
        match images.last() {
            Some(last) if more => after = entries_of(last).last(),
            _ => break,
        }
    }
    let more = entries.len() > size;
    entries.truncate(size);
    let next_token = entries.last().filter(|_| more).map(|(digest, tag)| {
        let tag = tag.as_ref().map_or("", Tag::as_str);
        page::token(&format!("{digest} {tag}"))
    });
    let image_ids = entries.iter().map(|(digest, tag)| identifier(digest, tag.as_ref())).collect();
    Ok(ListImagesResponse { image_ids: Some(image_ids), next_token })
}
