//! ListTaskDefinitions.

use aws_api::Error;
use aws_api::ecs::{ListTaskDefinitionsRequest, ListTaskDefinitionsResponse};
use model::Arn;
use model::definition::DefinitionStatus;
use serde::Deserialize;
use store::Range;

use super::errors::internal;
use super::identifier::is_name;
use super::page::Page;
use super::{Caller, Ecs};

/// The part of a definition that is listed.
#[derive(Deserialize)]
struct Listed {
    family: String,
    revision: u32,
    status: DefinitionStatus,
}

/// Lists revisions by family and number, up or down.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: ListTaskDefinitionsRequest,
) -> Result<ListTaskDefinitionsResponse, Error> {
    let scope = caller.scope();
    let status = input.status.as_deref().unwrap_or("ACTIVE");
    let descending = input.sort.as_deref() == Some("DESC");
    // Despite its name it is a whole family.
    let prefix = match input.family_prefix.as_deref().filter(|family| !family.is_empty()) {
        None => scope.definitions(),
        Some(family) if is_name(family) => scope.family_definitions(family),
        Some(_) => {
            return Ok(ListTaskDefinitionsResponse {
                task_definition_arns: Some(Vec::new()),
                next_token: None,
            });
        }
    };
    let order = if descending { "DESC" } else { "ASC" };
    let query = ["ListTaskDefinitions", status, order];
    let page = Page::parse(prefix, &query, input.next_token.as_deref(), input.max_results, 1..=100)?;
    let mut arns = Vec::new();
    let mut after = page.after.clone();
    loop {
        let mut range = Range::prefix(page.prefix()).limit(page.limit);
        if descending {
            range = range.reverse();
        }
        if let Some(after) = &after {
            range = range.after(after);
        }
        let found = ecs.store.range_json::<Listed>(range).await.map_err(internal)?;
        let count = found.entries.len();
        for (at, (key, listed)) in found.entries.into_iter().enumerate() {
            let Listed { family, revision, status: is } = listed.value;
            if is.as_str() == status {
                arns.push(
                    Arn::task_definition(&caller.region, &caller.account, &family, revision).to_string(),
                );
            }
            let more = found.more || at + 1 < count;
            if arns.len() == page.limit {
                let next_token = more.then(|| page.token(&key));
                return Ok(ListTaskDefinitionsResponse { task_definition_arns: Some(arns), next_token });
            }
            after = Some(key);
        }
        if !found.more {
            return Ok(ListTaskDefinitionsResponse { task_definition_arns: Some(arns), next_token: None });
        }
    }
}
