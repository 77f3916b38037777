//! Task definitions in the store, and as the API shows them.

use aws_api::ecs::TaskDefinition as WireDefinition;
use aws_api::{Error, Timestamp};
use model::Arn;
use model::definition::{DefinitionStatus, TaskDefinition};
use model::spec::Isolation;
use serde::{Deserialize, Serialize};
use store::{Range, Versioned};

use super::errors::{corrupt, internal, invalid};
use super::identifier::DefinitionRef;
use super::{Caller, Ecs, definition_document, records};

/// A family: its counter and what lists need of it. Its key stays when its revisions are gone, so that
/// no revision number is given out twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Family {
    /// The last revision number given out.
    pub last: u32,
    /// How many revisions are ACTIVE.
    pub active: u32,
    /// How many revisions there are, of any status.
    pub existing: u32,
}

/// The revision that `named` means; without a number the latest ACTIVE one.
pub(super) async fn find(
    ecs: &Ecs,
    caller: &Caller,
    named: &DefinitionRef,
) -> Result<Option<Versioned<TaskDefinition>>, Error> {
    let scope = caller.scope();
    let Some(revision) = named.revision else { return latest_active(ecs, caller, &named.family).await };
    records::load(&ecs.store, &scope.definition(&named.family, revision)).await
}

async fn latest_active(
    ecs: &Ecs,
    caller: &Caller,
    family: &str,
) -> Result<Option<Versioned<TaskDefinition>>, Error> {
    let prefix = caller.scope().family_definitions(family);
    let mut range = Range::prefix(&prefix).reverse().limit(4);
    loop {
        let found = ecs.store.range_json::<TaskDefinition>(range).await.map_err(internal)?;
        let last = found.entries.last().map(|(key, _)| key.clone());
        let mut entries = found.entries.into_iter().map(|(_, definition)| definition);
        if let Some(active) = entries.find(|d| d.value.status == DefinitionStatus::Active) {
            return Ok(Some(active));
        }
        match last {
            Some(last) if found.more => range = Range::prefix(&prefix).reverse().after(last).limit(16),
            _ => return Ok(None),
        }
    }
}

pub(super) fn arn(caller: &Caller, definition: &TaskDefinition) -> String {
    Arn::task_definition(&caller.region, &caller.account, &definition.family, definition.revision).to_string()
}

/// The document, as the wire's type.
pub(super) fn document(definition: &TaskDefinition) -> Result<WireDefinition, Error> {
    WireDefinition::deserialize(&definition.document).map_err(|e| corrupt("task definition", &e))
}

pub(super) fn view(caller: &Caller, definition: &TaskDefinition) -> Result<WireDefinition, Error> {
    let time = |at: model::Timestamp| Timestamp::from_millis(at.millis());
    Ok(WireDefinition {
        task_definition_arn: Some(arn(caller, definition)),
        family: Some(definition.family.clone()),
        revision: i32::try_from(definition.revision).ok(),
        status: Some(definition.status.as_str().to_owned()),
        registered_at: Some(time(definition.registered_at)),
        deregistered_at: definition.deregistered_at.map(time),
        delete_requested_at: definition.delete_requested_at.map(time),
        registered_by: Some(definition.registered_by.clone()),
        ..document(definition)?
    })
}

/// Refuses a document that cannot run as a Fargate task with this isolation, in ECS's words and with the
/// reason.
pub(super) fn compatible(document: &WireDefinition, isolation: Isolation) -> Result<(), Error> {
    definition_document::runs_on_fargate(document, isolation).map_err(|reason| {
        invalid(format!("Task definition does not support launch_type FARGATE. {}", reason.message))
    })
}
