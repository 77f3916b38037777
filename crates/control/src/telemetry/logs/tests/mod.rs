mod durability;
mod events;
mod listing;
mod retention;
mod tail;

use std::sync::Arc;

use model::{AccountId, Region, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::telemetry::filter::FilterPattern;

pub(super) const NOW: i64 = 1_700_000_000_000;

/// A store in a directory of its own, and a clock that stands still.
pub(super) struct Fixture {
    pub store: LogStore,
    pub clock: Clock,
    pub scope: Scope,
    pub dir: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("logs-").tempdir().expect("directory");
        let clock = Clock::manual(Timestamp(NOW));
        let store = LogStore::open(dir.path(), clock.clone()).expect("open");
        Self { store, clock, scope: scope("123456789012"), dir }
    }

    /// Closes the store and opens it again.
    pub fn reopen(self) -> Self {
        let Self { store, clock, scope, dir } = self;
        drop(store);
        let store = LogStore::open(dir.path(), clock.clone()).expect("open again");
        Self { store, clock, scope, dir }
    }

    pub async fn group(&self, name: &str) {
        let group = NewGroup { name: name.to_owned(), ..NewGroup::default() };
        self.store.create_group(&self.scope, group).await.expect("group");
    }

    pub async fn stream(&self, group: &str, name: &str) {
        self.store.create_stream(&self.scope, group, name).await.expect("stream");
    }

    pub async fn put(&self, group: &str, stream: &str, events: &[(i64, &str)]) {
        let events = events.iter().map(|(timestamp, message)| event(*timestamp, message)).collect();
        self.store.append(&self.scope, group, stream, events, None).await.expect("append");
    }

    pub async fn get(&self, group: &str, stream: &str, query: GetQuery) -> GetPage {
        self.store.get(&self.scope, group, stream, query).await.expect("get")
    }

    /// All pages of a search.
    pub async fn filter(&self, group: &str, query: FilterQuery, pattern: &str) -> Vec<FilteredEvent> {
        self.filter_within(group, query, pattern, 16 << 20).await.0
    }

    /// All pages of a search, each of which is meant to read `budget` bytes, and their number.
    pub async fn filter_within(
        &self,
        group: &str,
        query: FilterQuery,
        pattern: &str,
        budget: u64,
    ) -> (Vec<FilteredEvent>, usize) {
        let pattern = Arc::new(FilterPattern::parse(pattern).expect("pattern"));
        let (mut events, mut pages) = (Vec::new(), 0);
        let mut query = query;
        loop {
            let (scope, group) = (self.scope.clone(), group.to_owned());
            let (of_page, pattern) = (query.clone(), Arc::clone(&pattern));
            let page = self.store.read(move |inner| inner.filter(&scope, &group, &of_page, &pattern, budget));
            let page = page.await.expect("filter");
            pages += 1;
            assert!(page.events.len() <= query.limit);
            events.extend(page.events);
            query.token = page.next_token;
            if query.token.is_none() {
                return (events, pages);
            }
        }
    }
}

pub(super) fn scope(account: &str) -> Scope {
    Scope {
        account: AccountId::parse(account).expect("account"),
        region: Region::parse("eu-central-1").expect("region"),
    }
}

pub(super) fn event(timestamp: i64, message: &str) -> Event {
    Event { timestamp, message: message.to_owned() }
}

pub(super) fn messages(events: &[FilteredEvent]) -> Vec<&str> {
    events.iter().map(|found| found.event.message.as_str()).collect()
}
