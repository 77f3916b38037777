//! One piece of the writer's work, done inside the batch's SQLite transaction.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::reader;
use crate::range::prefix_bounds;
use crate::txn::{Expect, Guard, Write};
use crate::{Event, KeyValue, LeaseId, Revision, Txn};

pub(super) enum Work {
    Commit(Txn),
    Grant { lease: LeaseId, ttl: Duration },
    End(LeaseId),
}

impl Work {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Work::Commit(txn) => txn.bytes(),
            Work::Grant { .. } | Work::End(_) => 0,
        }
    }
}

#[derive(Debug)]
pub(super) enum Outcome {
    Done(Revision),
    Conflict { key: String },
    NoLease(LeaseId),
}

/// Does `work` on a state that is at `revision`. If it changes keys, it does so at the next revision and
/// adds their events. An outcome other than `Done` has changed nothing; after an error the state is
/// undefined and the SQLite transaction has to be rolled back.
pub(super) fn apply(
    conn: &Connection,
    work: &Work,
    revision: Revision,
    events: &mut Vec<Event>,
) -> rusqlite::Result<Outcome> {
    let next = Revision(revision.0 + 1);
    match work {
        Work::Commit(txn) => {
            for guard in &txn.guards {
                if !holds(conn, guard)? {
                    return Ok(Outcome::Conflict { key: guard.key.clone() });
                }
            }
            for write in &txn.writes {
                if let Write::Put { lease: Some(lease), .. } = write
                    && !lease_exists(conn, *lease)?
                {
                    return Ok(Outcome::NoLease(*lease));
                }
            }
            for write in &txn.writes {
                do_write(conn, write, next, events)?;
            }
        }
        Work::Grant { lease, ttl } => {
            conn.prepare_cached("INSERT INTO lease (id, ttl_ms) VALUES (?1, ?2)")?
                .execute((lease.0 as i64, ttl.as_millis() as i64))?;
        }
        Work::End(lease) => {
            let ended = conn.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([lease.0 as i64])?;
            if ended == 0 {
                return Ok(Outcome::NoLease(*lease));
            }
            let keys = conn
                .prepare_cached("DELETE FROM kv WHERE lease = ?1 RETURNING key")?
                .query_map([lease.0 as i64], reader::key)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            add_deletions(keys, events);
        }
    }
    Ok(Outcome::Done(if events.is_empty() { revision } else { next }))
}

fn holds(conn: &Connection, guard: &Guard) -> rusqlite::Result<bool> {
    let found = conn
        .prepare_cached("SELECT mod_revision FROM kv WHERE key = ?1")?
        .query_row([guard.key.as_bytes()], |row| reader::revision(row, 0))
        .optional()?;
    Ok(match guard.expect {
        Expect::Absent => found.is_none(),
        Expect::Exists => found.is_some(),
        Expect::Revision(expected) => found == Some(expected),
    })
}

fn lease_exists(conn: &Connection, lease: LeaseId) -> rusqlite::Result<bool> {
    // A number that is no SQLite integer is no lease, either.
    let Ok(id) = i64::try_from(lease.0) else {
        return Ok(false);
    };
    conn.prepare_cached("SELECT 1 FROM lease WHERE id = ?1")?.exists([id])
}

fn do_write(
    conn: &Connection,
    write: &Write,
    revision: Revision,
    events: &mut Vec<Event>,
) -> rusqlite::Result<()> {
    match write {
        Write::Put { key, value, lease } => {
            let create_revision = conn
                .prepare_cached(
                    "INSERT INTO kv (key, create_revision, mod_revision, lease, value)
                     VALUES (?1, ?2, ?2, ?3, ?4)
                     ON CONFLICT (key) DO UPDATE SET
                         mod_revision = excluded.mod_revision,
                         lease = excluded.lease,
                         value = excluded.value
                     RETURNING create_revision",
                )?
                .query_row(
                    (key.as_bytes(), revision.0 as i64, lease.map(|lease| lease.0 as i64), &value[..]),
                    |row| reader::revision(row, 0),
                )?;
            events.push(Event::Put(KeyValue {
                key: key.clone(),
                // A copy: the caller's bytes may be a small part of a large buffer, which the history
                // would keep alive.
                value: Bytes::copy_from_slice(value),
                create_revision,
                mod_revision: revision,
                lease: *lease,
            }));
        }
        Write::Delete { key } => {
            let deleted = conn.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key.as_bytes()])?;
            if deleted > 0 {
                events.push(Event::Delete { key: key.clone() });
            }
        }
        Write::DeletePrefix { prefix } => {
            let keys = conn
                .prepare_cached("DELETE FROM kv WHERE key >= ?1 AND key < ?2 RETURNING key")?
                .query_map(prefix_bounds(prefix), reader::key)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            add_deletions(keys, events);
        }
    }
    Ok(())
}

/// SQLite returns deleted rows in no defined order.
fn add_deletions(mut keys: Vec<String>, events: &mut Vec<Event>) {
    keys.sort_unstable();
    events.extend(keys.into_iter().map(|key| Event::Delete { key }));
}
