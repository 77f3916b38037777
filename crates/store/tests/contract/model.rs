//! Random histories against a model: a map in memory, one transaction after the other.

use std::collections::BTreeMap;

use proptest::prelude::*;
use store::{CommitError, Event, KeyValue, LeaseId, Range, Revision, Store, Txn, Watch};

use crate::support::{open, temp_dir, within};

/// Few keys, some of them prefixes of others, so that histories collide.
const KEYS: [&str; 8] = ["a", "a/", "a/1", "a/2", "a/2/x", "b", "b/1", "c"];
const PREFIXES: [&str; 6] = ["", "a", "a/", "a/2", "b/", "none"];

#[derive(Clone, Debug)]
enum Guarded {
    Absent(usize),
    Exists(usize),
    /// The key's revision, off by so much.
    Revision(usize, u64),
}

#[derive(Clone, Debug)]
enum Written {
    Put(usize, u8),
    PutLeased(usize, u8, usize),
    Delete(usize),
    DeletePrefix(usize),
}

#[derive(Clone, Debug)]
enum Step {
    /// Sent together; they are applied one after the other, in an order that revisions tell.
    Commits(Vec<(Vec<Guarded>, Vec<Written>)>),
    Revoke(usize),
    Range {
        prefix: usize,
        after: Option<usize>,
        limit: Option<usize>,
        reverse: bool,
        keys_only: bool,
    },
    Reopen,
}

fn guarded() -> impl Strategy<Value = Guarded> {
    let key = 0..KEYS.len();
    prop_oneof![
        key.clone().prop_map(Guarded::Absent),
        key.clone().prop_map(Guarded::Exists),
        (key, prop_oneof![4 => Just(0), 1 => 1..3_u64]).prop_map(|(key, off)| Guarded::Revision(key, off)),
    ]
}

fn written() -> impl Strategy<Value = Written> {
    let key = 0..KEYS.len();
    prop_oneof![
        6 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Written::Put(key, value)),
        2 => (key.clone(), any::<u8>(), 0..3_usize)
            .prop_map(|(key, value, lease)| Written::PutLeased(key, value, lease)),
        3 => key.prop_map(Written::Delete),
        1 => (0..PREFIXES.len()).prop_map(Written::DeletePrefix),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let commit = (prop::collection::vec(guarded(), 0..3), prop::collection::vec(written(), 0..4));
    let range = (
        0..PREFIXES.len(),
        prop::option::of(0..KEYS.len()),
        prop::option::of(0..5_usize),
        any::<bool>(),
        any::<bool>(),
    );
    prop_oneof![
        8 => prop::collection::vec(commit, 1..6).prop_map(Step::Commits),
        1 => (0..3_usize).prop_map(Step::Revoke),
        4 => range.prop_map(|(prefix, after, limit, reverse, keys_only)| Step::Range {
            prefix, after, limit, reverse, keys_only,
        }),
        1 => Just(Step::Reopen),
    ]
}

/// What the store should be.
#[derive(Default)]
struct Model {
    kvs: BTreeMap<String, KeyValue>,
    revision: u64,
    leases: Vec<Option<LeaseId>>,
    /// The events of each revision.
    events: Vec<(Revision, Vec<Event>)>,
}

impl Model {
    /// The transaction that a step means in the model's present state, leaving out writes that a transaction
    /// may not have together.
    fn txn(&self, guards: &[Guarded], writes: &[Written]) -> (Txn, Vec<Written>) {
        let mut txn = Txn::new();
        for guard in guards {
            txn = match guard {
                Guarded::Absent(key) => txn.expect_absent(KEYS[*key]),
                Guarded::Exists(key) => txn.expect_exists(KEYS[*key]),
                Guarded::Revision(key, _) => txn.expect_revision(KEYS[*key], self.expected_revision(guard)),
            };
        }
        let mut kept: Vec<Written> = Vec::new();
        for write in writes {
            let covers = |a: &Written, b: &Written| match (a, b) {
                (Written::DeletePrefix(prefix), other) => {
                    put_key(other).is_some_and(|key| key.starts_with(PREFIXES[*prefix]))
                }
                (Written::Delete(deleted), other) => put_key(other) == Some(KEYS[*deleted]),
                (put, other) => put_key(put) == put_key(other),
            };
            if kept.iter().any(|k| covers(k, write) || covers(write, k)) {
                continue;
            }
            txn = match write {
                Written::Put(key, value) => txn.put(KEYS[*key], vec![*value]),
                Written::PutLeased(key, value, lease) => match self.leases[*lease] {
                    Some(lease) => txn.put_with_lease(KEYS[*key], vec![*value], lease),
                    None => continue,
                },
                Written::Delete(key) => txn.delete(KEYS[*key]),
                Written::DeletePrefix(prefix) => txn.delete_prefix(PREFIXES[*prefix]),
            };
            kept.push(write.clone());
        }
        (txn, kept)
    }

    fn expected_revision(&self, guard: &Guarded) -> Revision {
        let Guarded::Revision(key, off) = guard else {
            return Revision(0);
        };
        let now = self.kvs.get(KEYS[*key]).map_or(1, |kv| kv.mod_revision.0);
        Revision(now + off)
    }

    fn failing_guard(&self, guards: &[(Guarded, Revision)]) -> Option<&'static str> {
        guards.iter().find_map(|(guard, revision)| {
            let (key, holds) = match guard {
                Guarded::Absent(key) => (key, !self.kvs.contains_key(KEYS[*key])),
                Guarded::Exists(key) => (key, self.kvs.contains_key(KEYS[*key])),
                Guarded::Revision(key, _) => {
                    let now = self.kvs.get(KEYS[*key]).map(|kv| kv.mod_revision);
                    (key, now == Some(*revision))
                }
            };
            (!holds).then_some(KEYS[*key])
        })
    }

    fn apply(&mut self, writes: &[Written], leases: &[Option<LeaseId>]) {
        let next = Revision(self.revision + 1);
        let mut events = Vec::new();
        for write in writes {
            match write {
                Written::Put(key, value) => events.push(self.put(key, *value, None, next)),
                Written::PutLeased(key, value, lease) => {
                    events.push(self.put(key, *value, leases[*lease], next));
                }
                Written::Delete(key) => self.delete(|k, _| k == KEYS[*key], &mut events),
                Written::DeletePrefix(prefix) => {
                    self.delete(|k, _| k.starts_with(PREFIXES[*prefix]), &mut events);
                }
            }
        }
        self.finish(events);
    }

    fn put(&mut self, key: &usize, value: u8, lease: Option<LeaseId>, at: Revision) -> Event {
        let key = KEYS[*key].to_owned();
        let created = self.kvs.get(&key).map_or(at, |kv| kv.create_revision);
        let kv = KeyValue {
            key: key.clone(),
            value: vec![value].into(),
            create_revision: created,
            mod_revision: at,
            lease,
        };
        self.kvs.insert(key, kv.clone());
        Event::Put(kv)
    }

    fn delete(&mut self, which: impl Fn(&str, &KeyValue) -> bool, events: &mut Vec<Event>) {
        self.kvs.retain(|key, kv| {
            let delete = which(key, kv);
            if delete {
                events.push(Event::Delete { key: key.clone() });
            }
            !delete
        });
    }

    fn finish(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision += 1;
            self.events.push((Revision(self.revision), events));
        }
    }
}

fn put_key(write: &Written) -> Option<&'static str> {
    match write {
        Written::Put(key, _) | Written::PutLeased(key, ..) => Some(KEYS[*key]),
        _ => None,
    }
}

async fn grant_leases(store: &Store) -> Vec<Option<LeaseId>> {
    let mut leases = Vec::new();
    for _ in 0..3 {
        let ttl = std::time::Duration::from_secs(3600);
        leases.push(Some(store.grant_lease(ttl).await.unwrap()));
    }
    leases
}

async fn run(steps: Vec<Step>) {
    let dir = temp_dir();
    let mut store = open(dir.path());
    let mut model = Model {
        revision: store.revision().await.unwrap().0,
        leases: grant_leases(&store).await,
        ..Model::default()
    };
    let mut watch = store.watch("", None);
    let mut told = 0;
    for step in steps {
        match step {
            Step::Commits(commits) => commit_together(&store, &mut model, commits).await,
            Step::Revoke(lease) => {
                let Some(lease) = model.leases[lease].take() else {
                    continue;
                };
                store.revoke(lease).await.unwrap();
                let mut events = Vec::new();
                model.delete(|_, kv| kv.lease == Some(lease), &mut events);
                model.finish(events);
            }
            Step::Range { prefix, after, limit, reverse, keys_only } => {
                let mut range = Range::prefix(PREFIXES[prefix]);
                let mut expected: Vec<KeyValue> =
                    model.kvs.values().filter(|kv| kv.key.starts_with(PREFIXES[prefix])).cloned().collect();
                if reverse {
                    range = range.reverse();
                    expected.reverse();
                }
                if let Some(after) = after {
                    range = range.after(KEYS[after]);
                    expected.retain(|kv| match reverse {
                        false => &kv.key[..] > KEYS[after],
                        true => &kv.key[..] < KEYS[after],
                    });
                }
                let mut more = false;
                if let Some(limit) = limit {
                    range = range.limit(limit);
                    more = expected.len() > limit;
                    expected.truncate(limit);
                }
                if keys_only {
                    range = range.keys_only();
                    expected.iter_mut().for_each(|kv| kv.value.clear());
                }
                let found = store.range(range).await.unwrap();
                assert_eq!(found.kvs, expected);
                assert_eq!(found.more, more);
                assert_eq!(found.revision.0, model.revision);
            }
            Step::Reopen => {
                told = check_events(&mut watch, &model, told).await;
                drop(store);
                store = open(dir.path());
                watch = store.watch("", Some(Revision(model.revision)));
            }
        }
        let found = store.range(Range::prefix("")).await.unwrap();
        let expected: Vec<_> = model.kvs.values().cloned().collect();
        assert_eq!(found.kvs, expected);
        assert_eq!(found.revision.0, model.revision);
    }
    check_events(&mut watch, &model, told).await;
}

/// Commits sent together are applied in the order of sending: the model does the same and must come to the
/// same outcomes.
async fn commit_together(store: &Store, model: &mut Model, commits: Vec<(Vec<Guarded>, Vec<Written>)>) {
    let mut sent = Vec::new();
    let mut meant = Vec::new();
    for (guards, writes) in commits {
        let (txn, writes) = model.txn(&guards, &writes);
        let guards: Vec<_> = guards
            .into_iter()
            .map(|guard| {
                let revision = model.expected_revision(&guard);
                (guard, revision)
            })
            .collect();
        sent.push(store.commit(txn));
        meant.push((guards, writes));
    }
    let outcomes = join_in_order(sent).await;
    let leases = model.leases.clone();
    for ((guards, writes), outcome) in meant.into_iter().zip(outcomes) {
        match model.failing_guard(&guards) {
            Some(key) => match outcome {
                Err(CommitError::Conflict { key: named }) => assert_eq!(named, key),
                other => panic!("expected a conflict on {key}, not {other:?}"),
            },
            None => {
                model.apply(&writes, &leases);
                assert_eq!(outcome.unwrap().0, model.revision);
            }
        }
    }
}

/// Polls every future once, in order, before waiting for any.
async fn join_in_order<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, outcome) in &mut futures {
            if outcome.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(done) => *outcome = Some(done),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, outcome)| outcome).collect()
}

/// The watch has told exactly the model's events since `told`.
async fn check_events(watch: &mut Watch, model: &Model, told: usize) -> usize {
    for (revision, events) in &model.events[told..] {
        let batch = within("an event", watch.next()).await.unwrap();
        assert_eq!(batch.revision, *revision);
        assert_eq!(&batch.events, events);
    }
    model.events.len()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn histories_are_those_of_the_model(steps in prop::collection::vec(step(), 1..30)) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(run(steps));
    }
}
