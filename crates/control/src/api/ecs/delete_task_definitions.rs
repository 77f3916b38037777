//! DeleteTaskDefinitions.

use aws_api::Error;
use aws_api::ecs::{DeleteTaskDefinitionsRequest, DeleteTaskDefinitionsResponse, Failure};
use model::Arn;
use model::definition::{DefinitionStatus, TaskDefinition};

use super::errors::invalid;
use super::identifier::DefinitionRef;
use super::{Caller, Ecs, definition_records, identifier, records};

const NO_IDENTIFIER: &str =
    "The specified task definition identifier is invalid. Specify a valid name or ARN and try again.";
const MISSING: &str =
    "The specified task definition does not exist. Specify a valid account, family, revision and try again.";
const ACTIVE: &str =
    "The specified task definition is still in ACTIVE status. Please deregister the target and try again.";

/// Makes INACTIVE revisions DELETE_IN_PROGRESS. The sweep removes them when no task refers to them any
/// more.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DeleteTaskDefinitionsRequest,
) -> Result<DeleteTaskDefinitionsResponse, Error> {
    if input.task_definitions.is_empty() {
        return Err(invalid("size of TaskDefinition references list must be greater than 0"));
    }
    if input.task_definitions.len() > 10 {
        return Err(invalid("Size of TaskDefinition references list cannot exceed 10"));
    }
    let (mut definitions, mut failures) = (Vec::new(), Vec::new());
    for text in &input.task_definitions {
        match delete(ecs, caller, text).await? {
            Ok(definition) => definitions.push(definition_records::view(caller, &definition)?),
            Err(reason) => failures.push(Failure {
                arn: Some(failure_arn(caller, text)),
                reason: Some(reason.to_owned()),
                detail: None,
            }),
        }
    }
    Ok(DeleteTaskDefinitionsResponse { task_definitions: Some(definitions), failures: Some(failures) })
}

/// The deleted revision, or why it is not.
async fn delete(
    ecs: &Ecs,
    caller: &Caller,
    text: &str,
) -> Result<Result<TaskDefinition, &'static str>, Error> {
    let named = match identifier::definition(caller, text) {
        Ok(Some(DefinitionRef { family, revision: Some(revision) })) => (family, revision),
        Ok(_) | Err(_) => return Ok(Err(NO_IDENTIFIER)),
    };
    let mut active = false;
    let now = ecs.clock.now();
    let deleted = records::update(
        &ecs.store,
        &caller.scope().definition(&named.0, named.1),
        |d: &mut TaskDefinition| {
            active = d.status == DefinitionStatus::Active;
            if d.status == DefinitionStatus::Inactive {
                d.status = DefinitionStatus::DeleteInProgress;
                d.delete_requested_at = Some(now);
            }
            Ok(())
        },
    )
    .await?;
    Ok(match deleted {
        None => Err(MISSING),
        Some(_) if active => Err(ACTIVE),
        Some(definition) => Ok(definition),
    })
}

fn failure_arn(caller: &Caller, text: &str) -> String {
    if text.starts_with("arn:") {
        return text.to_owned();
    }
    Arn::new("ecs", &caller.region, &caller.account, format!("task-definition/{text}")).to_string()
}
