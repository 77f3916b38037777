//! Reading events: one stream (`GetLogEvents`), or a search over a group's streams in order of time
//! (`FilterLogEvents`).
//!
//! Memory is bounded by one page. A search reads its streams one after the other, in the order of
//! their first events, and keeps the earliest events found so far, at most a page; as soon as the page
//! is full, later streams are read only up to the page's last event. So a search needs one open
//! iterator however many streams there are, and gives the same pages as a merge of all streams would.
//!
//! A page also reads a bounded amount. How far in time that leads is estimated from the sizes and times
//! that the streams' records have; a stream that holds much more than was estimated ends the page
//! where it reaches its share. So a page may hold few events, or none, and have a token.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fjall::Readable;

use super::keys::{self, GroupId, Position, StreamId};
use super::record::{self, StreamRecord};
use super::token::Direction;
use super::{Inner, LogError, LogStore, limits};
use crate::keys::Scope;
use crate::telemetry::filter::FilterPattern;

/// Events in one page, and their bytes (`GetLogEvents` in the API reference: 1 MB, up to 10,000).
pub const PAGE_EVENTS: usize = 10_000;
const PAGE_BYTES: usize = limits::MAX_BATCH_BYTES as usize;

/// What one page of a search is meant to read, in bytes as the service counts them.
const SCAN_BYTES: u64 = 16 << 20;

/// What it may read of each stream: so many times what was estimated, and at least this part of
/// [`SCAN_BYTES`] (4 KiB).
const SHARE_FACTOR: u64 = 4;
const SHARE_PART: u64 = 4096;

/// An event as it is stored. Times are milliseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    pub timestamp: i64,
    pub ingested_at: i64,
    pub message: String,
    /// Unique in this store, and the same whenever the event is read.
    pub id: String,
}

/// One page of a stream. Times are milliseconds since the epoch; `start` is the first included, `end`
/// the first excluded.
#[derive(Clone, Debug, Default)]
pub struct GetQuery {
    pub start: Option<i64>,
    pub end: Option<i64>,
    /// Without a token: the oldest events rather than the newest.
    pub from_head: bool,
    pub token: Option<String>,
    /// At most [`PAGE_EVENTS`].
    pub limit: usize,
}

#[derive(Clone, Debug)]
pub struct GetPage {
    /// By time, ascending, whichever way the token led.
    pub events: Vec<StoredEvent>,
    /// The token that was given, when there is nothing (yet) in its direction.
    pub next_forward: String,
    pub next_backward: String,
}

/// One page of a search. `start` is the first time included, `end` the last included.
#[derive(Clone, Debug, Default)]
pub struct FilterQuery {
    /// Exactly these; all when empty.
    pub streams: Vec<String>,
    /// With no `streams`: those whose names begin so.
    pub prefix: String,
    pub start: Option<i64>,
    pub end: Option<i64>,
    pub token: Option<String>,
    /// At most [`PAGE_EVENTS`].
    pub limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilteredEvent {
    pub stream: Arc<str>,
    pub event: StoredEvent,
}

#[derive(Clone, Debug)]
pub struct FilterPage {
    /// By time, then arrival, over all streams.
    pub events: Vec<FilteredEvent>,
    pub next_token: Option<String>,
}

impl LogStore {
    /// Reads a page of one stream.
    ///
    /// # Errors
    /// `GroupNotFound`, `StreamNotFound`, `InvalidToken`.
    pub async fn get(
        &self,
        scope: &Scope,
        group: &str,
        stream: &str,
        query: GetQuery,
    ) -> Result<GetPage, LogError> {
        let (scope, group, stream) = (scope.clone(), group.to_owned(), stream.to_owned());
        self.read(move |inner| inner.get(&scope, &group, &stream, &query)).await
    }

    /// Searches a group. A page may be short, even empty, and still have a token.
    ///
    /// # Errors
    /// `GroupNotFound`, `StreamNotFound` (for a name in `streams`), `InvalidToken`.
    pub async fn filter(
        &self,
        scope: &Scope,
        group: &str,
        query: FilterQuery,
        pattern: Arc<FilterPattern>,
    ) -> Result<FilterPage, LogError> {
        let (scope, group) = (scope.clone(), group.to_owned());
        self.read(move |inner| inner.filter(&scope, &group, &query, &pattern, SCAN_BYTES)).await
    }
}

/// What fits into a page.
fn page_limit(limit: usize) -> usize {
    limit.clamp(1, PAGE_EVENTS)
}

impl Inner {
    fn get(&self, scope: &Scope, group: &str, name: &str, query: &GetQuery) -> Result<GetPage, LogError> {
        let group = self.group(scope, group)?;
        let stream = self.stream(group.id, name)?;
        let expiry = group.expiry(self.clock.now().millis()).unwrap_or(i64::MIN);
        let low = Position::start_of(query.start.unwrap_or(i64::MIN).max(expiry));
        let high = query.end.map_or(Position::MAX, Position::start_of).max(low);

        let given = match &query.token {
            Some(token) => Some(self.tokens.read_stream(token, group.id, stream.id)?),
            None => None,
        };
        let (direction, from) = match given {
            Some((direction, at)) => (direction, at),
            None if query.from_head => (Direction::Forward, low),
            None => (Direction::Backward, high),
        };
        let (low, high) = match direction {
            Direction::Forward => (low.max(from).min(high), high),
            Direction::Backward => (low, high.min(from).max(low)),
        };
        let key = |at| keys::event(group.id, stream.id, at);
        let mut range = self.events.range(key(low)..key(high));
        let mut events = Vec::new();
        let (mut bytes, limit) = (0, page_limit(query.limit));
        while events.len() < limit {
            let entry = match direction {
                Direction::Forward => range.next(),
                Direction::Backward => range.next_back(),
            };
            let Some(entry) = entry else { break };
            let (at, event) = decode(entry)?;
            bytes += event.message.len();
            if bytes > PAGE_BYTES && !events.is_empty() {
                break;
            }
            events.push((at, event));
        }
        if direction == Direction::Backward {
            events.reverse();
        }
        // An empty page leaves both tokens where it began, so that a token that leads nowhere is
        // answered by itself. The newest end of a stream without events is its beginning.
        let nowhere = match given {
            Some((_, at)) => at,
            None => low,
        };
        let first = events.first().map_or(nowhere, |(at, _)| *at);
        let last = events.last().map_or(nowhere, |(at, _)| at.after());
        let token = |direction, at| self.tokens.stream(direction, group.id, stream.id, at);
        Ok(GetPage {
            next_forward: token(Direction::Forward, last),
            next_backward: token(Direction::Backward, first),
            events: events.into_iter().map(|(_, event)| event).collect(),
        })
    }

    /// `budget`: the bytes that the page is meant to read.
    pub(super) fn filter(
        &self,
        scope: &Scope,
        group: &str,
        query: &FilterQuery,
        pattern: &FilterPattern,
        budget: u64,
    ) -> Result<FilterPage, LogError> {
        let group = self.group(scope, group)?;
        let expiry = group.expiry(self.clock.now().millis()).unwrap_or(i64::MIN);
        let mut low = Position::start_of(query.start.unwrap_or(i64::MIN).max(expiry));
        if let Some(token) = &query.token {
            low = low.max(self.tokens.read_filter(token, group.id)?);
        }
        let high = match query.end {
            Some(end) if end < i64::MAX => Position::start_of(end + 1),
            _ => Position::MAX,
        };
        // Streams and events are read as they were at one moment.
        let snapshot = self.db.snapshot();
        let candidates = self.candidates(&snapshot, group.id, query, low, high)?;
        let mut search = Search {
            pattern,
            limit: page_limit(query.limit),
            upper: high,
            found: BTreeMap::new(),
            bytes: 0,
            read: 0,
        };
        search.upper = horizon(&candidates, high, budget);
        let estimated_to = search.upper.time;
        for candidate in &candidates {
            // What is left to read may be less than was estimated, but not before the page's first event.
            if candidate.from > low && search.read > SHARE_FACTOR * budget {
                search.lower_to(candidate.from.min(search.upper));
            }
            if candidate.from >= search.upper {
                // So do all that follow.
                break;
            }
            let estimate = candidate.bytes_before(estimated_to);
            let share = (budget / SHARE_PART).max(SHARE_FACTOR.saturating_mul(estimate)).max(1);
            let id = candidate.id;
            let range = keys::event(group.id, id, low)..keys::event(group.id, id, search.upper);
            search.stream(id, snapshot.range(&self.events, range), share)?;
        }
        let next_token = (search.upper < high).then(|| self.tokens.filter(group.id, search.upper));
        let mut names = HashMap::new();
        let mut events = Vec::with_capacity(search.found.len());
        for (id, event) in search.found.into_values() {
            let stream = match names.get(&id) {
                Some(name) => Arc::clone(name),
                None => {
                    let name = snapshot.get(&self.meta, keys::stream_name(group.id, id))?;
                    let name = name.ok_or(LogError::Corrupt("stream name"))?;
                    let name: Arc<str> =
                        std::str::from_utf8(&name).map_err(|_| LogError::Corrupt("stream name"))?.into();
                    names.insert(id, Arc::clone(&name));
                    name
                }
            };
            events.push(FilteredEvent { stream, event });
        }
        Ok(FilterPage { events, next_token })
    }

    /// The streams that may hold events between `low` and `high`, in the order in which they begin.
    fn candidates(
        &self,
        snapshot: &fjall::Snapshot,
        group: GroupId,
        query: &FilterQuery,
        low: Position,
        high: Position,
    ) -> Result<Vec<Candidate>, LogError> {
        let mut found = Vec::new();
        let mut consider = |record: StreamRecord| {
            if let Some(span) = record.span
                && span.last >= low.time
                && Position::start_of(span.first) < high
            {
                let from = Position::start_of(span.first).max(low);
                found.push(Candidate {
                    from,
                    id: record.id,
                    first: span.first,
                    last: span.last,
                    bytes: record.bytes,
                });
            }
        };
        if query.streams.is_empty() {
            for entry in snapshot.prefix(&self.meta, keys::stream(group, &query.prefix)) {
                consider(record::decode(&entry.value()?, "stream")?);
            }
        } else {
            for name in &query.streams {
                let record = snapshot.get(&self.meta, keys::stream(group, name))?;
                consider(record::decode(&record.ok_or(LogError::StreamNotFound)?, "stream")?);
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// A stream to search. The order of the fields is that of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// No event of the search comes before it.
    from: Position,
    id: StreamId,
    /// Times of its oldest and newest events, and the bytes of all.
    first: i64,
    last: i64,
    bytes: u64,
}

impl Candidate {
    /// About how many bytes it holds from where the search begins up to `time`, if its events are
    /// evenly spread.
    fn bytes_before(&self, time: i64) -> u64 {
        let end = time.min(self.last.saturating_add(1));
        let within = end.saturating_sub(self.from.time).max(0);
        let whole = self.last.saturating_sub(self.first).saturating_add(1).max(1);
        let bytes =
            u128::from(self.bytes) * u128::from(within.unsigned_abs()) / u128::from(whole.unsigned_abs());
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// How far a page shall go at most: up to where it has read `budget` bytes, if the streams' events are
/// evenly spread. After the first candidate's begin, so that every page gets on.
fn horizon(candidates: &[Candidate], high: Position, budget: u64) -> Position {
    let Some(first) = candidates.first() else { return high };
    let fits = |time| {
        let bytes = candidates.iter().map(|candidate| candidate.bytes_before(time));
        bytes.fold(0, u64::saturating_add) <= budget
    };
    let last = candidates.iter().map(|candidate| candidate.last).max().unwrap_or(i64::MAX);
    let end = last.saturating_add(1).min(high.time);
    if fits(end) {
        return high;
    }
    // What fits ends at `low` or later, and before `end`.
    let (mut low, mut end) = (first.from.time.saturating_add(1), end);
    while end.saturating_sub(low) > 1 {
        let middle = low + (end - low) / 2;
        if fits(middle) { low = middle } else { end = middle }
    }
    Position::start_of(low).min(high)
}

struct Search<'q> {
    pattern: &'q FilterPattern,
    limit: usize,
    /// Events from here on do not come into this page.
    upper: Position,
    found: BTreeMap<Position, (StreamId, StoredEvent)>,
    /// Of the messages in `found`.
    bytes: usize,
    /// Bytes read so far, as the service counts them.
    read: u64,
}

impl Search<'_> {
    /// Reads one stream, of which the page may read `share` bytes. At least one event is read, so that
    /// every page gets on.
    fn stream(&mut self, id: StreamId, range: fjall::Iter, share: u64) -> Result<(), LogError> {
        let mut read = 0;
        for entry in range {
            let (at, event) = decode(entry)?;
            if at >= self.upper {
                break;
            }
            if read >= share {
                self.lower_to(at);
                break;
            }
            read += record::billed_size(event.message.len());
            if self.pattern.matches(&event.message) {
                self.bytes += event.message.len();
                self.found.insert(at, (id, event));
                while self.found.len() > self.limit || (self.bytes > PAGE_BYTES && self.found.len() > 1) {
                    self.drop_last();
                }
            }
        }
        self.read = self.read.saturating_add(read);
        Ok(())
    }

    /// Ends the page before `at`.
    fn lower_to(&mut self, at: Position) {
        self.upper = at;
        while self.found.last_key_value().is_some_and(|(last, _)| *last >= at) {
            self.drop_last();
        }
    }

    fn drop_last(&mut self) {
        if let Some((at, (_, event))) = self.found.pop_last() {
            self.bytes -= event.message.len();
            self.upper = self.upper.min(at);
        }
    }
}

fn decode(entry: fjall::Guard) -> Result<(Position, StoredEvent), LogError> {
    let (key, value) = entry.into_inner()?;
    let at = keys::event_position(&key)?;
    let (ingested_at, message) = record::decode_event(&value)?;
    // 56 digits, as the service's ids have; the second part alone is unique.
    let id = format!("{:020}{:036}", at.time.max(0), at.seq);
    Ok((at, StoredEvent { timestamp: at.time, ingested_at, message: message.to_owned(), id }))
}
