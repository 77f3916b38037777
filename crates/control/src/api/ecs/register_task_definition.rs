//! RegisterTaskDefinition.

use aws_api::Error;
use aws_api::ecs::{RegisterTaskDefinitionRequest, RegisterTaskDefinitionResponse};
use model::definition::{DefinitionStatus, TaskDefinition};
use store::Txn;

use super::definition_records::{self, Family};
use super::errors::{client, corrupt};
use super::records::{self, Outcome};
use super::{Caller, Ecs, definition_document, isolation, tags};

/// Registers the next revision of a family. Revisions are numbered from 1, without gaps under
/// concurrency, and never given out again.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    mut input: RegisterTaskDefinitionRequest,
) -> Result<RegisterTaskDefinitionResponse, Error> {
    let given_tags = input.tags.take();
    let tags = tags::checked(given_tags.as_deref())?;
    let family = input.family.clone();
    let isolation = isolation::chosen([&tags], ecs.default_isolation)?;
    let document = definition_document::from_request(input, isolation)?;
    let mut definition = TaskDefinition {
        family: family.clone(),
        revision: 0,
        status: DefinitionStatus::Active,
        registered_at: ecs.clock.now(),
        deregistered_at: None,
        delete_requested_at: None,
        registered_by: caller.principal_arn.clone(),
        document: serde_json::to_value(document).map_err(|e| corrupt("task definition", &e))?,
        tags,
    };
    let scope = caller.scope();
    let counter = scope.family(&family);
    for _ in 0..records::ATTEMPTS {
        let (mut next, txn) = match records::load::<Family>(&ecs.store, &counter).await? {
            Some(found) => (found.value, Txn::new().expect_revision(&counter, found.revision)),
            None => (Family::default(), Txn::new().expect_absent(&counter)),
        };
        next = Family { last: next.last + 1, active: next.active + 1, existing: next.existing + 1 };
        definition.revision = next.last;
        let key = scope.definition(&family, definition.revision);
        let txn = txn.expect_absent(&key).put_json(&counter, &next).put_json(&key, &definition);
        if records::commit(&ecs.store, txn).await? == Outcome::Committed {
            return Ok(RegisterTaskDefinitionResponse {
                task_definition: Some(definition_records::view(caller, &definition)?),
                tags: given_tags.map(|_| tags::to_wire(&definition.tags)),
            });
        }
    }
    Err(client("Too many concurrent attempts to create a new revision of the specified family."))
}
