//! DescribeTaskDefinition.

use aws_api::Error;
use aws_api::ecs::{DescribeTaskDefinitionRequest, DescribeTaskDefinitionResponse};

use super::errors::definition_not_found;
use super::{Caller, Ecs, definition_records, identifier, tags};

/// Describes a revision of any status, or the latest ACTIVE one of a family.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DescribeTaskDefinitionRequest,
) -> Result<DescribeTaskDefinitionResponse, Error> {
    let named = identifier::definition(caller, &input.task_definition)?.ok_or_else(definition_not_found)?;
    let found = definition_records::find(ecs, caller, &named).await?.ok_or_else(definition_not_found)?;
    let include_tags = input.include.iter().flatten().any(|field| field == "TAGS");
    Ok(DescribeTaskDefinitionResponse {
        task_definition: Some(definition_records::view(caller, &found.value)?),
        tags: Some(if include_tags { tags::to_wire(&found.value.tags) } else { Vec::new() }),
    })
}
