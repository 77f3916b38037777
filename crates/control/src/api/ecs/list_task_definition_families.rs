//! ListTaskDefinitionFamilies.

use aws_api::Error;
use aws_api::ecs::{ListTaskDefinitionFamiliesRequest, ListTaskDefinitionFamiliesResponse};

use super::definition_records::Family;
use super::identifier::is_name;
use super::page::Page;
use super::{Caller, Ecs};

/// Lists families: with an ACTIVE revision, without one but with others, or both.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: ListTaskDefinitionFamiliesRequest,
) -> Result<ListTaskDefinitionFamiliesResponse, Error> {
    let status = input.status.as_deref().unwrap_or("ALL");
    let all = caller.scope().family("");
    let wanted = input.family_prefix.as_deref().unwrap_or_default();
    if !wanted.is_empty() && !is_name(wanted) {
        return Ok(ListTaskDefinitionFamiliesResponse { families: Some(Vec::new()), next_token: None });
    }
    let page = Page::parse(
        format!("{all}{wanted}"),
        &["ListTaskDefinitionFamilies", status],
        input.next_token.as_deref(),
        input.max_results,
        1..=100,
    )?;
    let (families, next_token) = page
        .fill::<Family>(&ecs.store, false, |key, family| {
            let listed = match status {
                "ACTIVE" => family.active > 0,
                "INACTIVE" => family.active == 0 && family.existing > 0,
                _ => family.existing > 0,
            };
            listed.then(|| key[all.len()..].to_owned())
        })
        .await?;
    Ok(ListTaskDefinitionFamiliesResponse { families: Some(families), next_token })
}
