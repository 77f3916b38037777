//! What goes with time: deleted task definitions and used client tokens.

use std::collections::HashSet;

use aws_api::Error;
use model::definition::{DefinitionStatus, TaskDefinition};
use model::{TaskStatus, Timestamp};
use serde::Deserialize;
use store::{Store, Txn};

use super::client_token::Record;
use super::definition_records::Family;
use super::{records, task_records};
use crate::keys::{CLIENT_TOKENS, DEFINITIONS, FAMILIES, TASKS, TaskPath};

/// Removes task definitions in DELETE_IN_PROGRESS that no task runs any more, and client tokens past
/// their 24 hours, of all accounts. May be repeated at any time.
///
/// # Errors
/// ServerException when the store fails, which is logged.
pub async fn sweep(store: &Store, now: Timestamp) -> Result<(), Error> {
    sweep_tokens(store, now).await?;
    sweep_definitions(store).await
}

async fn sweep_tokens(store: &Store, now: Timestamp) -> Result<(), Error> {
    for (key, record) in records::all::<Record>(store, CLIENT_TOKENS).await? {
        if record.value.expired(now) {
            // A conflict is a token in use again.
            records::commit(store, Txn::new().expect_revision(&key, record.revision).delete(&key)).await?;
        }
    }
    Ok(())
}

async fn sweep_definitions(store: &Store) -> Result<(), Error> {
    /// The part of a definition that is looked at.
    #[derive(Deserialize)]
    struct Listed {
        status: DefinitionStatus,
    }
    let mut doomed = records::all::<Listed>(store, DEFINITIONS).await?;
    doomed.retain(|(_, listed)| listed.value.status == DefinitionStatus::DeleteInProgress);
    if doomed.is_empty() {
        return Ok(());
    }
    let used = used_definitions(store).await?;
    for (key, _) in doomed.iter().filter(|(key, _)| !used.contains(key)) {
        remove(store, key).await?;
    }
    Ok(())
}

/// The keys of the definitions that tasks which have not stopped were started from.
async fn used_definitions(store: &Store) -> Result<HashSet<String>, Error> {
    /// The part of an intent that is looked at.
    #[derive(Deserialize)]
    struct Intent {
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        family: String,
        revision: u32,
    }
    let mut used = HashSet::new();
    for (key, intent) in records::all::<Intent>(store, TASKS).await? {
        let Spec { family, revision } = intent.value.spec;
        let Some(path) = TaskPath::of_key(TASKS, &key) else { continue };
        let Some(scope) = path.scope() else { continue };
        let definition = scope.definition(&family, revision);
        if used.contains(&definition) {
            continue;
        }
        let stopped =
            task_records::load(store, &path).await?.is_none_or(|t| t.status() == TaskStatus::Stopped);
        if !stopped {
            used.insert(definition);
        }
    }
    Ok(used)
}

/// Removes one definition and counts it out of its family, whose counter stays.
async fn remove(store: &Store, key: &str) -> Result<(), Error> {
    for _ in 0..records::ATTEMPTS {
        let Some(definition) = records::load::<TaskDefinition>(store, key).await? else { return Ok(()) };
        let Some(counter) = family_key(key) else { return Ok(()) };
        let mut txn = Txn::new().expect_revision(key, definition.revision).delete(key);
        if let Some(family) = records::load::<Family>(store, &counter).await? {
            let counts = Family { existing: family.value.existing.saturating_sub(1), ..family.value };
            txn = txn.expect_revision(&counter, family.revision).put_json(&counter, &counts);
        }
        if records::commit(store, txn).await? == records::Outcome::Committed {
            return Ok(());
        }
    }
    Ok(())
}

/// `ecs/definition/A/R/FAMILY/N` to `ecs/family/A/R/FAMILY`.
fn family_key(definition: &str) -> Option<String> {
    let (path, _) = definition.strip_prefix(DEFINITIONS)?.rsplit_once('/')?;
    Some(format!("{FAMILIES}{path}"))
}
