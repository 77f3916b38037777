//! The recent history of committed transactions, from which watches are served.
//!
//! One bounded ring holds the events of the latest transactions; each follower holds only the
//! revisions, in the ring, that concern it. A commit costs what its own keys' followers cost,
//! however many others there are, and a follower that does not read pins no memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::{Event, Revision, WatchBatch, WatchError};

/// Bounds of the ring: whichever is reached first. The latest transaction always stays.
const MAX_TRANSACTIONS: usize = 16 * 1024;
const MAX_BYTES: usize = 8 << 20;
/// The most undelivered transactions of one follower.
const MAX_PENDING: usize = 4096;

/// The events of one committed transaction.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) revision: u64,
    pub(crate) events: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct History {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Consecutive revisions, the last of them `last`.
    ring: VecDeque<Arc<Committed>>,
    bytes: usize,
    last: u64,
    followers: HashMap<u64, Following>,
    next_follower: u64,
    /// Followers by their prefix, and how many prefixes there are of each length: a key's followers
    /// are found with one look-up per length.
    by_prefix: HashMap<String, Vec<u64>>,
    lengths: BTreeMap<usize, usize>,
    closed: bool,
}

#[derive(Debug)]
struct Following {
    /// Deliver only what is later.
    after: u64,
    pending: VecDeque<u64>,
    failed: Option<WatchError>,
    notify: Arc<Notify>,
}

/// A watch's place in the history.
#[derive(Debug)]
pub(crate) struct Follower {
    id: u64,
    prefix: String,
    notify: Arc<Notify>,
}

impl Follower {
    /// Waits until [`History::take`] may have something.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl History {
    /// A history that knows nothing up to `last` and everything after.
    pub(crate) fn starting_after(last: u64) -> History {
        History {
            state: Mutex::new(State {
                ring: VecDeque::new(),
                bytes: 0,
                last,
                followers: HashMap::new(),
                next_follower: 0,
                by_prefix: HashMap::new(),
                lengths: BTreeMap::new(),
                closed: false,
            }),
        }
    }

    /// The state is consistent between any two statements that can unwind, so a poisoned lock
    /// is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision of the last published transaction.
    pub(crate) fn last(&self) -> u64 {
        self.lock().last
    }

    /// Adds durable transactions, whose revisions follow [`last`](History::last) one by one, and wakes
    /// their followers.
    pub(crate) fn publish(&self, transactions: Vec<Committed>) {
        let mut state = self.lock();
        for transaction in transactions {
            state.publish(transaction);
        }
    }

    /// Takes note that the store is at `last` and it is not known how it came there: every follower
    /// has lost changes.
    pub(crate) fn restart(&self, last: u64) {
        let mut state = self.lock();
        state.ring.clear();
        state.bytes = 0;
        state.last = last;
        for following in state.followers.values_mut() {
            following.fail(WatchError::Lagged);
        }
    }

    /// Ends every follower: there will be no more transactions. What is pending is still delivered.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for following in state.followers.values() {
            following.notify.notify_one();
        }
    }

    pub(crate) fn follow(&self, prefix: &str, after: Option<Revision>) -> Follower {
        let mut state = self.lock();
        let state = &mut *state;
        let notify = Arc::new(Notify::new());
        let after = after.map_or(state.last, |after| after.0);
        let mut following =
            Following { after, pending: VecDeque::new(), failed: None, notify: Arc::clone(&notify) };
        let floor = state.floor();
        if after < floor {
            following.failed = Some(WatchError::Compacted { after: Revision(floor) });
        } else {
            for transaction in &state.ring {
                let concerns = |event: &Event| event.key().starts_with(prefix);
                if transaction.revision > after && transaction.events.iter().any(concerns) {
                    following.add(transaction.revision);
                }
            }
        }
        let id = state.next_follower;
        state.next_follower += 1;
        state.followers.insert(id, following);
        let same = state.by_prefix.entry(prefix.to_owned()).or_default();
        if same.is_empty() {
            *state.lengths.entry(prefix.len()).or_default() += 1;
        }
        same.push(id);
        Follower { id, prefix: prefix.to_owned(), notify }
    }

    pub(crate) fn unfollow(&self, follower: &Follower) {
        let mut state = self.lock();
        let state = &mut *state;
        state.followers.remove(&follower.id);
        let Some(same) = state.by_prefix.get_mut(&follower.prefix) else {
            return;
        };
        same.retain(|id| *id != follower.id);
        if same.is_empty() {
            state.by_prefix.remove(&follower.prefix);
            let length = follower.prefix.len();
            if let Some(count) = state.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    state.lengths.remove(&length);
                }
            }
        }
    }

    /// The follower's next transaction or its end; `None` if there is nothing yet.
    pub(crate) fn take(&self, follower: &Follower) -> Option<Result<WatchBatch, WatchError>> {
        let transaction = {
            let mut state = self.lock();
            let state = &mut *state;
            let floor = state.floor();
            let Some(following) = state.followers.get_mut(&follower.id) else {
                return Some(Err(WatchError::Closed));
            };
            if following.pending.front().is_some_and(|next| *next <= floor) {
                following.fail(WatchError::Lagged);
            }
            if let Some(error) = &following.failed {
                return Some(Err(error.clone()));
            }
            let Some(revision) = following.pending.pop_front() else {
                return state.closed.then_some(Err(WatchError::Closed));
            };
            following.after = revision;
            let place = usize::try_from(revision - floor - 1).ok()?;
            Arc::clone(state.ring.get(place)?)
        };
        let concerns = |event: &&Event| event.key().starts_with(&follower.prefix);
        Some(Ok(WatchBatch {
            revision: Revision(transaction.revision),
            events: transaction.events.iter().filter(concerns).cloned().collect(),
        }))
    }
}

impl State {
    /// The ring holds everything after this revision.
    fn floor(&self) -> u64 {
        self.last - self.ring.len() as u64
    }

    fn publish(&mut self, transaction: Committed) {
        debug_assert_eq!(transaction.revision, self.last + 1);
        let revision = transaction.revision;
        for event in &transaction.events {
            let key = event.key();
            for length in self.lengths.range(..=key.len()).map(|(length, _)| *length) {
                // A prefix ends between characters; where the key does not, it has no such prefix.
                let Some(followers) = key.get(..length).and_then(|p| self.by_prefix.get(p)) else {
                    continue;
                };
                for id in followers {
                    if let Some(following) = self.followers.get_mut(id) {
                        following.add(revision);
                    }
                }
            }
        }
        self.bytes += transaction.bytes();
        self.last = revision;
        self.ring.push_back(Arc::new(transaction));
        while self.ring.len() > 1 && (self.ring.len() > MAX_TRANSACTIONS || self.bytes > MAX_BYTES) {
            if let Some(oldest) = self.ring.pop_front() {
                self.bytes -= oldest.bytes();
            }
        }
    }
}

impl Following {
    fn add(&mut self, revision: u64) {
        if revision <= self.after || self.failed.is_some() || self.pending.back() == Some(&revision) {
            return;
        }
        if self.pending.len() == MAX_PENDING {
            self.fail(WatchError::Lagged);
            return;
        }
        self.pending.push_back(revision);
        self.notify.notify_one();
    }

    fn fail(&mut self, error: WatchError) {
        self.pending = VecDeque::new();
        self.failed.get_or_insert(error);
        self.notify.notify_one();
    }
}

impl Committed {
    /// Memory held, nearly: contents and the fixed part of each event.
    fn bytes(&self) -> usize {
        let contents = |event: &Event| match event {
            Event::Put(kv) => kv.key.len() + kv.value.len(),
            Event::Delete { key } => key.len(),
        };
        let events: usize = self.events.iter().map(contents).sum();
        events + self.events.len() * size_of::<Event>() + size_of::<Committed>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(revision: u64, key: &str) -> Committed {
        Committed { revision, events: vec![Event::Delete { key: key.to_owned() }] }
    }

    fn publish(history: &History, revisions: std::ops::RangeInclusive<u64>, key: &str) {
        history.publish(revisions.map(|revision| delete(revision, key)).collect());
    }

    #[test]
    fn a_follower_holds_so_many_and_no_more() {
        let history = History::starting_after(7);
        let slow = history.follow("a", None);
        let idle = history.follow("b", None);
        let most = MAX_PENDING as u64;
        publish(&history, 8..=7 + most, "a/1");
        let first = history.take(&slow).expect("one is pending").expect("it has not lagged");
        assert_eq!(first.revision, Revision(8));
        publish(&history, 8 + most..=9 + most, "a/1");
        assert_eq!(history.take(&slow), Some(Err(WatchError::Lagged)));
        assert_eq!(history.take(&idle), None);
    }

    #[test]
    fn the_ring_is_bounded_by_number() {
        let history = History::starting_after(0);
        let most = MAX_TRANSACTIONS as u64;
        publish(&history, 1..=most + 10, "a");
        assert_eq!(history.lock().ring.len(), MAX_TRANSACTIONS);
        let late = history.follow("", Some(Revision(9)));
        let compacted = WatchError::Compacted { after: Revision(10) };
        assert_eq!(history.take(&late), Some(Err(compacted)));
        // In time for the ring, but with more to come than a follower holds.
        let early = history.follow("", Some(Revision(10)));
        assert_eq!(history.take(&early), Some(Err(WatchError::Lagged)));
        let just = history.follow("", Some(Revision(most)));
        assert_eq!(history.take(&just).map(|batch| batch.map(|b| b.revision)), Some(Ok(Revision(most + 1))));
    }

    #[test]
    fn a_follower_that_has_gone_leaves_nothing() {
        let history = History::starting_after(0);
        let followers = ["", "a", "a", "ab"].map(|prefix| history.follow(prefix, None));
        publish(&history, 1..=3, "abc");
        for follower in &followers {
            history.unfollow(follower);
        }
        let state = history.lock();
        assert!(state.followers.is_empty() && state.by_prefix.is_empty() && state.lengths.is_empty());
    }
}
