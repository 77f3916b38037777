//! ListTaskDefinitions.

use aws_api::Error;
use aws_api::ecs::{ListTaskDefinitionsRequest, ListTaskDefinitionsResponse};
use model::Arn;
use model::definition::DefinitionStatus;
use serde::Deserialize;

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
    let (arns, next_token) = page
        .fill::<Listed>(&ecs.store, descending, |_, Listed { family, revision, status: is }| {
            let arn = || Arn::task_definition(&caller.region, &caller.account, &family, revision).to_string();
            (is.as_str() == status).then(arn)
        })
        .await?;
    Ok(ListTaskDefinitionsResponse { task_definition_arns: Some(arns), next_token })
}
