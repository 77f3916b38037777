//! What goes with time: deleted task definitions and used client tokens.

use std::collections::HashSet;

use aws_api::Error;
use model::TaskStatus;
use model::definition::{DefinitionStatus, TaskDefinition};
use serde::Deserialize;
use store::{Range, Txn};

use super::client_token::Record;
use super::definition_records::Family;
use super::errors::internal;
use super::{Ecs, records, task_records};
use crate::keys::{CLIENT_TOKENS, DEFINITIONS, FAMILIES, TASKS, TaskPath};

/// How many records are read at once.
const BATCH: usize = 500;

/// Removes task definitions in DELETE_IN_PROGRESS that no task runs any more, and client tokens past
/// their 24 hours. Takes no input and may be repeated at any time.
pub async fn sweep(ecs: &Ecs) -> Result<(), Error> {
    sweep_tokens(ecs).await?;
    sweep_definitions(ecs).await
}

async fn sweep_tokens(ecs: &Ecs) -> Result<(), Error> {
    let now = ecs.clock.now();
    let mut after: Option<String> = None;
    loop {
        let mut range = Range::prefix(CLIENT_TOKENS).limit(BATCH);
        if let Some(after) = &after {
            range = range.after(after);
        }
        let found = ecs.store.range_json::<Record>(range).await.map_err(internal)?;
        for (key, record) in found.entries {
            if record.value.expired(now) {
                let txn = Txn::new().expect_revision(&key, record.revision).delete(&key);
                // A conflict is a token in use again.
                records::commit(ecs, txn).await?;
            }
            after = Some(key);
        }
        if !found.more {
            return Ok(());
        }
    }
}

async fn sweep_definitions(ecs: &Ecs) -> Result<(), Error> {
    /// The part of a definition that is looked at.
    #[derive(Deserialize)]
    struct Listed {
        status: DefinitionStatus,
    }
    let mut doomed = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut range = Range::prefix(DEFINITIONS).limit(BATCH);
        if let Some(after) = &after {
            range = range.after(after);
        }
        let found = ecs.store.range_json::<Listed>(range).await.map_err(internal)?;
        for (key, listed) in found.entries {
            if listed.value.status == DefinitionStatus::DeleteInProgress {
                doomed.push(key.clone());
            }
            after = Some(key);
        }
        if !found.more {
            break;
        }
    }
    if doomed.is_empty() {
        return Ok(());
    }
    let used = used_definitions(ecs).await?;
    for key in doomed.iter().filter(|key| !used.contains(*key)) {
        remove(ecs, key).await?;
    }
    Ok(())
}

/// The keys of the definitions that tasks which have not stopped were started from.
async fn used_definitions(ecs: &Ecs) -> Result<HashSet<String>, Error> {
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
    let mut after: Option<String> = None;
    loop {
        let mut range = Range::prefix(TASKS).limit(BATCH);
        if let Some(after) = &after {
            range = range.after(after);
        }
        let found = ecs.store.range_json::<Intent>(range).await.map_err(internal)?;
        for (key, intent) in found.entries {
            let Spec { family, revision } = intent.value.spec;
            if let Some(path) = TaskPath::of_key(TASKS, &key) {
                let definition = path.scope().map(|scope| scope.definition(&family, revision));
                let stopped =
                    task_records::load(ecs, &path).await?.is_none_or(|t| t.status() == TaskStatus::Stopped);
                used.extend(definition.filter(|_| !stopped));
            }
            after = Some(key);
        }
        if !found.more {
            return Ok(used);
        }
    }
}

/// Removes one definition and counts it out of its family, whose counter stays.
async fn remove(ecs: &Ecs, key: &str) -> Result<(), Error> {
    for _ in 0..records::ATTEMPTS {
        let Some(definition) = records::load::<TaskDefinition>(ecs, key).await? else { return Ok(()) };
        let Some(counter) = family_key(key) else { return Ok(()) };
        let mut txn = Txn::new().expect_revision(key, definition.revision).delete(key);
        if let Some(family) = records::load::<Family>(ecs, &counter).await? {
            let counts = Family { existing: family.value.existing.saturating_sub(1), ..family.value };
            txn = txn.expect_revision(&counter, family.revision).put_json(&counter, &counts);
        }
        if records::commit(ecs, txn).await? == records::Outcome::Committed {
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
