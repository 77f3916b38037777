//! Giving disk space back: what retention expired, and what belonged to deleted groups and streams.

use super::keys::{self, GroupId, Position, StreamId};
use super::record::{self, CursorRecord, GroupRecord, StreamRecord};
use super::writer::Transaction;
use super::{DAY_MS, Inner, LogError, LogStore, streams};

/// Entries removed in one commit: other writes wait for it.
const CHUNK: usize = 2_000;

/// Entries looked at in one read.
const PAGE: usize = 1_000;

/// A cursor that did not move for so long belongs to a source that is gone.
const CURSOR_AGE_MS: i64 = 90 * DAY_MS;

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Events past their group's retention.
    pub expired_events: u64,
    /// Events of deleted groups and streams.
    pub erased_events: u64,
    pub cursors: u64,
}

/// A stream that holds expired events.
struct Due {
    group: GroupId,
    /// The stream's key.
    stream: Vec<u8>,
    /// Events before this time are expired.
    expiry: i64,
}

impl LogStore {
    /// Removes expired events, those of deleted groups and streams, and cursors that nobody moves any
    /// more. Call it from time to time; it works in small commits beside other writes, and goes on
    /// where it was when it is interrupted.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn sweep(&self) -> Result<Swept, LogError> {
        let mut swept = Swept::default();
        let mut after = Some(keys::TRASH.to_vec());
        while let Some(from) = after.take() {
            let (trash, next) = self.read(move |inner| inner.trash(from)).await?;
            for (group, stream) in trash {
                swept.erased_events += self.erase(group, stream).await?;
            }
            after = next;
        }
        let mut after = Some(keys::GROUPS.to_vec());
        while let Some(from) = after.take() {
            let (groups, next) = self.read(move |inner| inner.retained(from)).await?;
            for (group, expiry) in groups {
                swept.expired_events += self.expire_group(group, expiry).await?;
            }
            after = next;
        }
        swept.cursors = self.sweep_cursors().await?;
        Ok(swept)
    }

    /// Removes all that a deleted group or stream left.
    async fn erase(&self, group: GroupId, stream: Option<StreamId>) -> Result<u64, LogError> {
        let mut erased = 0;
        let mut from = Some(keys::events(group, stream));
        while let Some(key) = from.take() {
            let events = self.inner.events.clone();
            let removed =
                self.write(0, true, move |tx| erase_events(tx, &events, group, stream, &key)).await?;
            erased += removed.0 as u64;
            from = removed.1;
        }
        let mut finished = false;
        while !finished {
            let meta = self.inner.meta.clone();
            finished = self.write(0, true, move |tx| erase_records(tx, &meta, group, stream)).await?;
        }
        Ok(erased)
    }

    async fn expire_group(&self, group: GroupId, expiry: i64) -> Result<u64, LogError> {
        let mut expired = 0;
        let mut after = Some(keys::stream(group, ""));
        while let Some(from) = after.take() {
            let (due, next) = self.read(move |inner| inner.due(group, expiry, from)).await?;
            for due in due {
                expired += self.expire_stream(due).await?;
            }
            after = next;
        }
        Ok(expired)
    }

    async fn expire_stream(&self, due: Due) -> Result<u64, LogError> {
        let due = std::sync::Arc::new(due);
        let mut expired = 0;
        loop {
            let (due, events) = (std::sync::Arc::clone(&due), self.inner.events.clone());
            let removed = self.write(0, true, move |tx| expire_chunk(tx, &events, &due)).await?;
            expired += removed as u64;
            if removed < CHUNK {
                return Ok(expired);
            }
        }
    }

    async fn sweep_cursors(&self) -> Result<u64, LogError> {
        let oldest = self.inner.clock.now().millis().saturating_sub(CURSOR_AGE_MS);
        let mut removed = 0;
        let mut after = Some(keys::CURSORS.to_vec());
        while let Some(from) = after.take() {
            let (stale, next) = self.read(move |inner| inner.stale_cursors(oldest, from)).await?;
            for key in stale {
                removed += self
                    .write(0, false, move |tx| {
                        let Some(value) = tx.get(&key)? else { return Ok(0) };
                        if record::decode::<CursorRecord>(&value, "cursor")?.updated_at >= oldest {
                            return Ok(0);
                        }
                        tx.remove(key);
                        Ok(1)
                    })
                    .await?;
            }
            after = next;
        }
        Ok(removed)
    }
}

/// Removes some events from the key `from` on. Says how many, and where to go on: beginning anew would
/// pass all that was removed, every time.
fn erase_events(
    tx: &mut Transaction<'_>,
    events: &fjall::Keyspace,
    group: GroupId,
    stream: Option<StreamId>,
    from: &[u8],
) -> Result<(usize, Option<Vec<u8>>), LogError> {
    let prefix = keys::events(group, stream);
    let mut removed = 0;
    for entry in events.range(from..) {
        let key = entry.key()?;
        if !key.starts_with(&prefix) {
            break;
        }
        if removed == CHUNK {
            return Ok((removed, Some(key.to_vec())));
        }
        tx.remove_event(key.to_vec());
        removed += 1;
    }
    Ok((removed, None))
}

/// Removes some records of a deleted group, and at last the mark; says whether that was all.
fn erase_records(
    tx: &mut Transaction<'_>,
    meta: &fjall::Keyspace,
    group: GroupId,
    stream: Option<StreamId>,
) -> Result<bool, LogError> {
    if stream.is_none() {
        let records = meta.prefix(keys::stream(group, "")).chain(meta.prefix(keys::stream_names(group)));
        let mut removed = 0;
        for entry in records.take(CHUNK) {
            tx.remove(entry.key()?.to_vec());
            removed += 1;
        }
        if removed == CHUNK {
            return Ok(false);
        }
    }
    tx.remove(keys::trash(group, stream));
    Ok(true)
}

fn expire_chunk(tx: &mut Transaction<'_>, events: &fjall::Keyspace, due: &Due) -> Result<usize, LogError> {
    // The stream may have been deleted since.
    let Some(value) = tx.get(&due.stream)? else { return Ok(0) };
    let mut record: StreamRecord = record::decode(&value, "stream")?;
    let Some(mut span) = record.span else { return Ok(0) };
    let key = |at| keys::event(due.group, record.id, at);
    let (mut removed, mut bytes) = (0, 0);
    let mut left = None;
    // From the first event on: what was removed before it is not passed again.
    for entry in events.range(key(Position::start_of(span.first))..=key(Position::MAX)) {
        let (key, value) = entry.into_inner()?;
        let at = keys::event_position(&key)?;
        if at.time >= due.expiry || removed == CHUNK {
            left = Some(at.time);
            break;
        }
        bytes += record::billed_size(record::decode_event(&value)?.1.len());
        tx.remove_event(key.to_vec());
        removed += 1;
    }
    record.bytes = record.bytes.saturating_sub(bytes);
    match left {
        Some(first) => {
            span.first = first;
            record.span = Some(span);
        }
        // As with the service, a stream stays when its last event expires.
        None => record.span = None,
    }
    tx.put(due.stream.clone(), record::encode(&record));
    streams::subtract_bytes(tx, due.group, bytes)?;
    Ok(removed)
}

/// Some entries, and the key to go on with when there may be more.
type Page<T> = (Vec<T>, Option<Vec<u8>>);

impl Inner {
    /// Goes over the records with the first byte `tag` from the key `from` on, and keeps what `keep`
    /// makes of them.
    fn scan<T>(
        &self,
        prefix: &[u8],
        from: Vec<u8>,
        mut keep: impl FnMut(&[u8], &[u8]) -> Result<Option<T>, LogError>,
    ) -> Result<Page<T>, LogError> {
        let mut kept = Vec::new();
        for (i, entry) in self.meta.range(from..).enumerate() {
            let (key, value) = entry.into_inner()?;
            if !key.starts_with(prefix) {
                break;
            }
            if i == PAGE {
                return Ok((kept, Some(key.to_vec())));
            }
            kept.extend(keep(&key, &value)?);
        }
        Ok((kept, None))
    }

    fn trash(&self, from: Vec<u8>) -> Result<Page<(GroupId, Option<StreamId>)>, LogError> {
        self.scan(keys::TRASH, from, |key, _| keys::parse_trash(key).map(Some))
    }

    /// Groups with a retention, and before which time their events are expired.
    fn retained(&self, from: Vec<u8>) -> Result<Page<(GroupId, i64)>, LogError> {
        let now = self.clock.now().millis();
        self.scan(keys::GROUPS, from, |_, value| {
            let record: GroupRecord = record::decode(value, "group")?;
            Ok(record.expiry(now).map(|expiry| (record.id, expiry)))
        })
    }

    fn due(&self, group: GroupId, expiry: i64, from: Vec<u8>) -> Result<Page<Due>, LogError> {
        self.scan(&keys::stream(group, ""), from, |key, value| {
            let record: StreamRecord = record::decode(value, "stream")?;
            let due = record.span.is_some_and(|span| span.first < expiry);
            Ok(due.then(|| Due { group, stream: key.to_vec(), expiry }))
        })
    }

    fn stale_cursors(&self, oldest: i64, from: Vec<u8>) -> Result<Page<Vec<u8>>, LogError> {
        self.scan(keys::CURSORS, from, |key, value| {
            let record: CursorRecord = record::decode(value, "cursor")?;
            Ok((record.updated_at < oldest).then(|| key.to_vec()))
        })
    }
}
