//! Writing events, exactly once when the writer counts them.

use std::sync::Arc;

use super::record::{self, CursorRecord, Span};
use super::tail::TailEvent;
use super::writer::Transaction;
use super::{LogError, LogStore, groups, keys, limits, streams};
use crate::keys::Scope;

/// An event to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    pub message: String,
}

/// Where the events of a batch stand in their source.
///
/// A source (a container, say) counts its events from 0. A batch of `n` holds those at
/// `upto - n .. upto`. What was stored before is skipped, so a source can send again whatever it does
/// not know to be stored, cut into other batches if it likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub source: String,
    pub upto: u64,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Events stored now.
    pub stored: usize,
    /// Events that were stored before.
    pub repeated: usize,
}

impl LogStore {
    /// Appends events, in any order of time; they and the cursor are on disk when this returns.
    ///
    /// Empty messages count for the cursor but are not stored, as the service has none. The service's
    /// limits on times and batches are not asked here ([`limits`] has them): what a container wrote
    /// is kept, however late it comes.
    ///
    /// # Errors
    /// `GroupNotFound`, `StreamNotFound`; `InvalidParameter` for a message longer than the service
    /// allows. Nothing is stored then.
    pub async fn append(
        &self,
        scope: &Scope,
        group: &str,
        stream: &str,
        events: Vec<Event>,
        cursor: Option<Cursor>,
    ) -> Result<Appended, LogError> {
        for event in &events {
            limits::check_message(&event.message)?;
        }
        let weight = events.iter().map(|event| event.message.len() + 64).sum();
        let batch = Batch {
            group_key: keys::group(scope, group),
            group: group.into(),
            stream: stream.into(),
            events,
            cursor,
        };
        self.write(weight, false, move |tx| batch.store(tx)).await
    }

    /// How many events of `source` are stored: the position of the first that is not.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn cursor(&self, source: &str) -> Result<u64, LogError> {
        let key = keys::cursor(source);
        self.read(move |inner| match inner.meta.get(key)? {
            Some(record) => Ok(record::decode::<CursorRecord>(&record, "cursor")?.upto),
            None => Ok(0),
        })
        .await
    }

    /// Forgets the cursors of sources that will not write again.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_cursors(&self, sources: &[String]) -> Result<(), LogError> {
        let keys: Vec<_> = sources.iter().map(|source| keys::cursor(source)).collect();
        self.write(0, false, move |tx| {
            for key in keys {
                if tx.get(&key)?.is_some() {
                    tx.remove(key);
                }
            }
            Ok(())
        })
        .await
    }
}

struct Batch {
    group_key: Vec<u8>,
    group: Arc<str>,
    stream: Arc<str>,
    events: Vec<Event>,
    cursor: Option<Cursor>,
}

impl Batch {
    fn store(self, tx: &mut Transaction<'_>) -> Result<Appended, LogError> {
        tx.require_room()?;
        let group = groups::load(tx, &self.group_key)?.id;
        let stream_key = keys::stream(group, &self.stream);
        let mut record = streams::load(tx, &stream_key)?;
        let repeated = self.advance_cursor(tx)?;
        let (mut stored, mut bytes) = (0, 0);
        for event in self.events.into_iter().skip(repeated) {
            if event.message.is_empty() {
                continue;
            }
            let at = keys::Position { time: event.timestamp, seq: tx.id() };
            tx.put_event(keys::event(group, record.id, at), record::encode_event(tx.now, &event.message));
            stored += 1;
            bytes += record::billed_size(event.message.len());
            record.span = Some(Span {
                first: record.span.map_or(at.time, |span| span.first.min(at.time)),
                last: record.span.map_or(at.time, |span| span.last.max(at.time)),
                ingested_at: tx.now,
            });
            let ingested_at = tx.now;
            tx.publish(|| TailEvent {
                group_id: group,
                group: Arc::clone(&self.group),
                stream: Arc::clone(&self.stream),
                timestamp: event.timestamp,
                ingested_at,
                message: event.message,
            });
        }
        if stored > 0 {
            record.bytes += bytes;
            tx.put(stream_key, record::encode(&record));
            let total = keys::stored_bytes(group);
            let before = tx.get(&total)?.map_or(Ok(0), |bytes| keys::number(&bytes))?;
            tx.put(total, (before + bytes).to_be_bytes().to_vec());
        }
        Ok(Appended { stored, repeated })
    }

    /// Moves the cursor on and says how many of the first events it had passed already.
    fn advance_cursor(&self, tx: &mut Transaction<'_>) -> Result<usize, LogError> {
        let Some(cursor) = &self.cursor else {
            return Ok(0);
        };
        let key = keys::cursor(&cursor.source);
        let passed = match tx.get(&key)? {
            Some(record) => record::decode::<CursorRecord>(&record, "cursor")?.upto,
            None => 0,
        };
        if cursor.upto <= passed {
            return Ok(self.events.len());
        }
        let fresh = usize::try_from(cursor.upto - passed).unwrap_or(usize::MAX);
        let record = CursorRecord { upto: cursor.upto, updated_at: tx.now };
        tx.put(key, record::encode(&record));
        Ok(self.events.len().saturating_sub(fresh))
    }
}
