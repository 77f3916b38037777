//! Log streams: create, delete, list.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::record::{self, Span, StreamRecord};
use super::writer::Transaction;
use super::{LogError, LogStore, groups, keys, limits};
use crate::keys::Scope;

/// A stream as it is. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStream {
    pub name: String,
    pub created_at: i64,
    pub first_event_at: Option<i64>,
    pub last_event_at: Option<i64>,
    pub last_ingested_at: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamOrder {
    #[default]
    Name,
    /// By the newest event's time; streams without events come as the oldest.
    LastEventTime,
}

/// One page of [`LogStore::describe_streams`].
#[derive(Clone, Debug, Default)]
pub struct StreamQuery {
    pub prefix: String,
    pub order: StreamOrder,
    pub descending: bool,
    pub token: Option<String>,
    pub limit: usize,
}

#[derive(Clone, Debug)]
pub struct StreamPage {
    pub streams: Vec<LogStream>,
    pub next_token: Option<String>,
}

impl LogStore {
    /// Creates a stream.
    ///
    /// # Errors
    /// `GroupNotFound`, `StreamExists`.
    pub async fn create_stream(&self, scope: &Scope, group: &str, name: &str) -> Result<(), LogError> {
        let (group, name) = (keys::group(scope, group), name.to_owned());
        self.write(0, false, move |tx| create(tx, &group, name)).await
    }

    /// Makes sure that a stream exists, and its group too when `create_group` is given (the awslogs
    /// driver's `awslogs-create-group`). Unlike the other operations it checks the names.
    ///
    /// # Errors
    /// `GroupNotFound` when the group is missing and shall not be created; `InvalidParameter` for names
    /// that the service does not allow.
    pub async fn ensure_stream(
        &self,
        scope: &Scope,
        group: &str,
        name: &str,
        create_group: bool,
    ) -> Result<(), LogError> {
        limits::check_group_name(group)?;
        limits::check_stream_name(name)?;
        let (scope, group, name) = (scope.clone(), group.to_owned(), name.to_owned());
        self.write(0, false, move |tx| {
            let key = keys::group(&scope, &group);
            if create_group && tx.get(&key)?.is_none() {
                groups::create(tx, &scope, groups::NewGroup { name: group, ..Default::default() })?;
            }
            match create(tx, &key, name) {
                Err(LogError::StreamExists) => Ok(()),
                outcome => outcome,
            }
        })
        .await
    }

    /// Deletes a stream; its events are gone at once, and their disk space after the next
    /// [`LogStore::sweep`].
    ///
    /// # Errors
    /// `GroupNotFound`, `StreamNotFound`.
    pub async fn delete_stream(&self, scope: &Scope, group: &str, name: &str) -> Result<(), LogError> {
        let (group, name) = (keys::group(scope, group), name.to_owned());
        self.write(0, false, move |tx| {
            let group = groups::load(tx, &group)?.id;
            let key = keys::stream(group, &name);
            let record = load(tx, &key)?;
            tx.remove(key);
            tx.remove(keys::stream_name(group, record.id));
            tx.put(keys::trash(group, Some(record.id)), Vec::new());
            subtract_bytes(tx, group, record.bytes)
        })
        .await
    }

    /// One stream.
    ///
    /// # Errors
    /// `GroupNotFound`, `StreamNotFound`.
    pub async fn stream(&self, scope: &Scope, group: &str, name: &str) -> Result<LogStream, LogError> {
        let (scope, group, name) = (scope.clone(), group.to_owned(), name.to_owned());
        self.read(move |inner| {
            let group = inner.group(&scope, &group)?;
            let record = inner.stream(group.id, &name)?;
            Ok(log_stream(name, &record))
        })
        .await
    }

    /// Lists the streams of a group.
    ///
    /// # Errors
    /// `GroupNotFound`, `InvalidToken`.
    pub async fn describe_streams(
        &self,
        scope: &Scope,
        group: &str,
        query: StreamQuery,
    ) -> Result<StreamPage, LogError> {
        let (scope, group) = (scope.clone(), group.to_owned());
        self.read(move |inner| {
            let group = inner.group(&scope, &group)?.id;
            match query.order {
                StreamOrder::Name => inner.streams_by_name(group, &query),
                StreamOrder::LastEventTime => inner.streams_by_time(group, &query),
            }
        })
        .await
    }
}

fn create(tx: &mut Transaction<'_>, group: &[u8], name: String) -> Result<(), LogError> {
    let group = groups::load(tx, group)?.id;
    let key = keys::stream(group, &name);
    if tx.get(&key)?.is_some() {
        return Err(LogError::StreamExists);
    }
    tx.require_room()?;
    let record = StreamRecord { id: tx.id(), created_at: tx.now, span: None, bytes: 0 };
    tx.put(key, record::encode(&record));
    tx.put(keys::stream_name(group, record.id), name.into_bytes());
    Ok(())
}

pub(super) fn load(tx: &Transaction<'_>, key: &[u8]) -> Result<StreamRecord, LogError> {
    record::decode(&tx.get(key)?.ok_or(LogError::StreamNotFound)?, "stream")
}

pub(super) fn subtract_bytes(tx: &mut Transaction<'_>, group: u64, bytes: u64) -> Result<(), LogError> {
    let key = keys::stored_bytes(group);
    if let Some(stored) = tx.get(&key)? {
        let left = keys::number(&stored)?.saturating_sub(bytes);
        tx.put(key, left.to_be_bytes().to_vec());
    }
    Ok(())
}

fn log_stream(name: String, record: &StreamRecord) -> LogStream {
    LogStream {
        name,
        created_at: record.created_at,
        first_event_at: record.span.map(|span| span.first),
        last_event_at: record.span.map(|span| span.last),
        last_ingested_at: record.span.map(|span| span.ingested_at),
    }
}

fn name_in_key(key: &[u8]) -> Result<&str, LogError> {
    let name = key.get(keys::STREAM_NAME_AT..).unwrap_or_default();
    std::str::from_utf8(name).map_err(|_| LogError::Corrupt("stream name"))
}

impl super::Inner {
    fn streams_by_name(&self, group: u64, query: &StreamQuery) -> Result<StreamPage, LogError> {
        let list = format!("streams-{}/{group}", if query.descending { "down" } else { "up" });
        let prefix = keys::stream(group, &query.prefix);
        let after = match &query.token {
            Some(token) => Some(self.tokens.read_listing(token, &list)?),
            None => None,
        };
        let beyond = |key: &[u8]| match &after {
            None => true,
            Some(after) if query.descending => key < after.as_slice(),
            Some(after) => key > after.as_slice(),
        };
        let mut page = StreamPage { streams: Vec::new(), next_token: None };
        let mut last = Vec::new();
        let mut visit = |key: &[u8], value: &[u8]| -> Result<bool, LogError> {
            if page.streams.len() == query.limit.max(1) {
                page.next_token = Some(self.tokens.listing(&list, &last));
                return Ok(false);
            }
            page.streams.push(log_stream(name_in_key(key)?.to_owned(), &record::decode(value, "stream")?));
            last = key.to_vec();
            Ok(true)
        };
        // A token narrows the range from the side where the listing began.
        let (low, high) = match (&after, query.descending) {
            (Some(after), false) => (after.clone(), successor(&prefix)),
            (Some(after), true) => (prefix.clone(), after.clone()),
            (None, _) => (prefix.clone(), successor(&prefix)),
        };
        if low >= high {
            return Ok(page);
        }
        let mut range = self.meta.range(low..high);
        while let Some(entry) = if query.descending { range.next_back() } else { range.next() } {
            let (key, value) = entry.into_inner()?;
            if key.starts_with(&prefix) && beyond(&key) && !visit(&key, &value)? {
                break;
            }
        }
        Ok(page)
    }

    /// Goes over all streams and keeps the page's in a heap: memory follows the page, not the group.
    fn streams_by_time(&self, group: u64, query: &StreamQuery) -> Result<StreamPage, LogError> {
        let list = format!("streams-{}/{group}", if query.descending { "newest" } else { "oldest" });
        let after = match &query.token {
            Some(token) => {
                Some(Ranked::from_token(&self.tokens.read_listing(token, &list)?, query.descending)?)
            }
            None => None,
        };
        let limit = query.limit.max(1);
        let mut heap = BinaryHeap::new();
        for entry in self.meta.prefix(keys::stream(group, &query.prefix)) {
            let (key, value) = entry.into_inner()?;
            let stream = log_stream(name_in_key(&key)?.to_owned(), &record::decode(&value, "stream")?);
            let ranked = Ranked { stream, descending: query.descending };
            if after.as_ref().is_none_or(|after| ranked > *after) {
                heap.push(ranked);
                if heap.len() > limit + 1 {
                    heap.pop();
                }
            }
        }
        let mut ranked = heap.into_sorted_vec();
        let more = ranked.len() > limit;
        ranked.truncate(limit);
        let next_token = ranked.last().filter(|_| more).map(|last| {
            self.tokens.listing(&list, &[&last.time().to_be_bytes(), last.stream.name.as_bytes()].concat())
        });
        Ok(StreamPage { streams: ranked.into_iter().map(|ranked| ranked.stream).collect(), next_token })
    }
}

/// The first key after all that begin with `prefix`, which holds a byte other than 0xff.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.pop() {
        if last < u8::MAX {
            key.push(last + 1);
            break;
        }
    }
    key
}

/// A stream in the order of its newest event; the name decides between equal times.
struct Ranked {
    stream: LogStream,
    descending: bool,
}

impl Ranked {
    fn time(&self) -> i64 {
        self.stream.last_event_at.unwrap_or(i64::MIN)
    }

    fn from_token(token: &[u8], descending: bool) -> Result<Self, LogError> {
        let (time, name) = token.split_first_chunk::<8>().ok_or(LogError::InvalidToken)?;
        let time = i64::from_be_bytes(*time);
        let name = String::from_utf8(name.to_vec()).map_err(|_| LogError::InvalidToken)?;
        let span = Some(Span { first: time, last: time, ingested_at: time }).filter(|_| time != i64::MIN);
        let record = StreamRecord { id: 0, created_at: 0, span, bytes: 0 };
        Ok(Self { stream: log_stream(name, &record), descending })
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = self.time().cmp(&other.time()).then_with(|| self.stream.name.cmp(&other.stream.name));
        if self.descending { order.reverse() } else { order }
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}
