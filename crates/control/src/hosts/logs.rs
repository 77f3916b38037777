//! From an agent's log batches to the log store.
//!
//! The container's offset is stored with the events, so a batch that comes twice (the agent did not
//! hear the answer) is stored once.

use model::sandbox::LogBatch;
use model::spec::LogSpec;

use super::*;
use model::Region;

use crate::keys::Scope;
use crate::telemetry::logs::{Cursor, Event, LogError};

/// Names a container's output for the log store, which counts its records.
pub(crate) fn cursor_source(task: &TaskId, container: &str) -> String {
    format!("{task}/{container}")
}

/// A batch and where it goes.
pub(super) struct LogWork {
    task: TaskId,
    account: AccountId,
    log: LogSpec,
    batch: LogBatch,
}

impl Session<'_> {
    /// Queues a batch for the log store. A batch of a task or container that is not known here is
    /// refused, so that the agent does not keep it for ever.
    pub(super) async fn logged(&self, queue: &mpsc::Sender<LogWork>, task: TaskId, batch: LogBatch) {
        let container = |known: &Known| {
            known
                .intent
                .spec
                .containers
                .iter()
                .find(|c| c.name == batch.container)
                .and_then(|c| c.log.clone())
        };
        let known = self.tasks.get(&task);
        match known.and_then(|known| container(known).map(|log| (known.intent.account.clone(), log))) {
            // A closed queue ends the session, and the agent sends again.
            Some((account, log)) => drop(queue.send(LogWork { task, account, log, batch }).await),
            None => {
                let upto = batch.first.saturating_add(batch.records.len() as u64);
                let reason = "the task has no log group".to_owned();
                let refused = ToAgent::LogsRefused { task, container: batch.container, upto, reason };
                // Without an agent there is nobody to tell.
                let _ = self.to_agent.send(refused);
            }
        }
    }
}

/// Stores batches in the order they came, until the queue closes.
pub(super) async fn store_batches(
    logs: LogStore,
    to_agent: mpsc::UnboundedSender<ToAgent>,
    mut queue: mpsc::Receiver<LogWork>,
) {
    while let Some(work) = queue.recv().await {
        let (task, container) = (work.task.clone(), work.batch.container.clone());
        let upto = work.batch.first.saturating_add(work.batch.records.len() as u64);
        let answer = match store_batch(&logs, work, upto).await {
            Ok(()) => ToAgent::LogsStored { task, container, upto },
            Err(LogError::GroupNotFound | LogError::InvalidParameter(_)) => {
                tracing::warn!(%task, container, "log records are refused: their group is gone");
                ToAgent::LogsRefused {
                    task,
                    container,
                    upto,
                    reason: "the log group does not exist".to_owned(),
                }
            }
            Err(error) => {
                // The agent keeps the records and sends them again in its next session.
                tracing::error!(%task, container, error = &error as &dyn std::error::Error, "logs cannot be stored");
                return;
            }
        };
        if to_agent.send(answer).is_err() {
            return;
        }
    }
}

async fn store_batch(logs: &LogStore, work: LogWork, upto: u64) -> Result<(), LogError> {
    let LogWork { task, account, log, batch } = work;
    let region = Region::parse(log.region).map_err(|e| LogError::InvalidParameter(e.to_string()))?;
    let scope = Scope { account, region };
    let cursor = Cursor { source: cursor_source(&task, &batch.container), upto };
    let events: Vec<Event> =
        batch.records.into_iter().map(|r| Event { timestamp: r.at.millis(), message: r.line }).collect();
    let stored = logs.append(&scope, &log.group, &log.stream, events.clone(), Some(cursor.clone())).await;
    if matches!(stored, Err(LogError::GroupNotFound | LogError::StreamNotFound)) {
        logs.ensure_stream(&scope, &log.group, &log.stream, log.create_group).await?;
        logs.append(&scope, &log.group, &log.stream, events, Some(cursor)).await?;
        return Ok(());
    }
    stored.map(|_| ())
}
