//! ListTaskDefinitionFamilies.

use aws_api::Error;
use aws_api::ecs::{ListTaskDefinitionFamiliesRequest, ListTaskDefinitionFamiliesResponse};
use store::Range;

use super::definition_records::Family;
use super::errors::internal;
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
    let mut families = Vec::new();
    let mut after = page.after.clone();
    loop {
        let mut range = Range::prefix(page.prefix()).limit(page.limit);
        if let Some(after) = &after {
            range = range.after(after);
        }
        let found = ecs.store.range_json::<Family>(range).await.map_err(internal)?;
        let count = found.entries.len();
        for (at, (key, family)) in found.entries.into_iter().enumerate() {
            let listed = match status {
                "ACTIVE" => family.value.active > 0,
                "INACTIVE" => family.value.active == 0 && family.value.existing > 0,
                _ => family.value.existing > 0,
            };
            if listed {
                families.push(key[all.len()..].to_owned());
            }
            let more = found.more || at + 1 < count;
            if families.len() == page.limit {
                let next_token = more.then(|| page.token(&key));
                return Ok(ListTaskDefinitionFamiliesResponse { families: Some(families), next_token });
            }
            after = Some(key);
        }
        if !found.more {
            return Ok(ListTaskDefinitionFamiliesResponse { families: Some(families), next_token: None });
        }
    }
}
