//! DeregisterTaskDefinition.

use aws_api::Error;
use aws_api::ecs::{DeregisterTaskDefinitionRequest, DeregisterTaskDefinitionResponse};
use model::definition::{DefinitionStatus, TaskDefinition};
use store::Txn;

use super::definition_records::{self, Family};
use super::errors::{client, contention, definition_not_found};
use super::records::{self, Outcome};
use super::{Caller, Ecs, identifier};

/// Makes a revision INACTIVE; one that is INACTIVE already stays as it is.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DeregisterTaskDefinitionRequest,
) -> Result<DeregisterTaskDefinitionResponse, Error> {
    let named = identifier::definition(caller, &input.task_definition)?.ok_or_else(definition_not_found)?;
    let revision = named.revision.ok_or_else(|| client("Revision is missing."))?;
    let scope = caller.scope();
    let (key, counter) = (scope.definition(&named.family, revision), scope.family(&named.family));
    for _ in 0..records::ATTEMPTS {
        let found =
            records::load::<TaskDefinition>(&ecs.store, &key).await?.ok_or_else(definition_not_found)?;
        let family = records::load::<Family>(&ecs.store, &counter).await?.ok_or_else(definition_not_found)?;
        let mut definition = found.value;
        if definition.status == DefinitionStatus::Active {
            definition.status = DefinitionStatus::Inactive;
            definition.deregistered_at = Some(ecs.clock.now());
            let counts = Family { active: family.value.active.saturating_sub(1), ..family.value };
            let txn = Txn::new()
                .expect_revision(&key, found.revision)
                .expect_revision(&counter, family.revision)
                .put_json(&key, &definition)
                .put_json(&counter, &counts);
            if records::commit(&ecs.store, txn).await? == Outcome::Conflict {
                continue;
            }
        }
        let view = definition_records::view(caller, &definition)?;
        return Ok(DeregisterTaskDefinitionResponse { task_definition: Some(view) });
    }
    Err(contention())
}
