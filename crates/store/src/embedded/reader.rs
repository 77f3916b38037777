//! Reads, each on a snapshot, from a pool of connections.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

use super::fault::Fault;
use super::file;
use crate::{Error, KeyValue, LeaseId, Range, RangeResult, Revision};

/// Idle connections to keep. More are opened when more threads read at once.
const MAX_IDLE: usize = 8;
/// A range read of up to so many keys and bytes is done by the calling thread; a longer one moves to a
/// blocking thread.
const INLINE_KEYS: usize = 128;
const INLINE_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    /// Opens one connection, so that the first read need not.
    pub(super) fn new(path: &Path) -> Result<Readers, Error> {
        let first = file::open_reader(path).map_err(|fault| fault.on(path))?;
        Ok(Readers { path: path.to_owned(), idle: Mutex::new(vec![first]) })
    }

    fn take(&self) -> Result<Connection, Fault> {
        let idle = self.lock().pop();
        match idle {
            Some(conn) => Ok(conn),
            None => file::open_reader(&self.path),
        }
    }

    /// Only after a success: a connection that failed is closed instead.
    fn put_back(&self, conn: Connection) {
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push(conn);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let read = || -> Result<Option<KeyValue>, Fault> {
            let conn = self.take()?;
            let found = conn
                .prepare_cached("SELECT create_revision, mod_revision, lease, value FROM kv WHERE key = ?1")?
                .query_row([key.as_bytes()], |row| {
                    Ok(KeyValue {
                        key: key.to_owned(),
                        value: value(row, 3)?,
                        create_revision: revision(row, 0)?,
                        mod_revision: revision(row, 1)?,
                        lease: lease(row, 2)?,
                    })
                })
                .optional()?;
            self.put_back(conn);
            Ok(found)
        };
        read().map_err(|fault| fault.on(&self.path))
    }

    pub(super) fn revision(&self) -> Result<Revision, Error> {
        let read = || -> Result<Revision, Fault> {
            let conn = self.take()?;
            let revision = current_revision(&conn)?;
            self.put_back(conn);
            Ok(revision)
        };
        read().map_err(|fault| fault.on(&self.path))
    }

    /// Begins the read on this thread. Short ranges are then already complete.
    pub(super) fn range(&self, range: Range) -> Result<RangeRead, Error> {
        let begin = || -> Result<RangeRead, Fault> {
            let conn = self.take()?;
            conn.prepare_cached("BEGIN")?.execute([])?;
            let revision = current_revision(&conn)?;
            let mut read = RangeRead {
                conn,
                left: range.limit.unwrap_or(usize::MAX),
                range,
                found: RangeResult { kvs: Vec::new(), more: false, revision },
                complete: false,
            };
            read.step(INLINE_KEYS, INLINE_BYTES)?;
            Ok(read)
        };
        begin().map_err(|fault| fault.on(&self.path))
    }

    /// Reads what is left of it; takes as long as that takes.
    pub(super) fn finish(&self, mut read: RangeRead) -> Result<RangeResult, Error> {
        let mut rest = || -> Result<(), Fault> {
            while !read.complete {
                read.step(usize::MAX, usize::MAX)?;
            }
            read.conn.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        };
        rest().map_err(|fault| fault.on(&self.path))?;
        self.put_back(read.conn);
        Ok(read.found)
    }
}

/// A range read under way: it holds its snapshot until it is finished or dropped.
pub(super) struct RangeRead {
    conn: Connection,
    range: Range,
    left: usize,
    found: RangeResult,
    complete: bool,
}

impl RangeRead {
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Reads on, at most about `keys` keys and `bytes` bytes of values.
    fn step(&mut self, keys: usize, bytes: usize) -> Result<(), Fault> {
        if let Some(last) = self.found.kvs.last() {
            self.range.after = Some(last.key.clone());
        }
        let (start, end) = self.range.bounds();
        let keys_only = self.range.keys_only;
        let mut statement = self.conn.prepare_cached(match (self.range.reverse, keys_only) {
            (false, false) => {
                "SELECT key, create_revision, mod_revision, lease, value FROM kv
                 WHERE key >= ?1 AND key < ?2 ORDER BY key"
            }
            (true, false) => {
                "SELECT key, create_revision, mod_revision, lease, value FROM kv
                 WHERE key >= ?1 AND key < ?2 ORDER BY key DESC"
            }
            (false, true) => {
                "SELECT key, create_revision, mod_revision, lease FROM kv
                 WHERE key >= ?1 AND key < ?2 ORDER BY key"
            }
            (true, true) => {
                "SELECT key, create_revision, mod_revision, lease FROM kv
                 WHERE key >= ?1 AND key < ?2 ORDER BY key DESC"
            }
        })?;
        let mut rows = statement.query((start, end))?;
        let (mut keys, mut bytes) = (keys, bytes);
        while let Some(row) = rows.next()? {
            if self.left == 0 {
                self.found.more = true;
                break;
            }
            if keys == 0 || bytes == 0 {
                return Ok(());
            }
            let kv = KeyValue {
                key: key(row)?,
                value: match keys_only {
                    true => Bytes::new(),
                    false => value(row, 4)?,
                },
                create_revision: revision(row, 1)?,
                mod_revision: revision(row, 2)?,
                lease: lease(row, 3)?,
            };
            self.left -= 1;
            keys -= 1;
            bytes = bytes.saturating_sub(kv.value.len());
            self.found.kvs.push(kv);
        }
        self.complete = true;
        Ok(())
    }
}

pub(super) fn current_revision(conn: &Connection) -> rusqlite::Result<Revision> {
    conn.prepare_cached("SELECT revision FROM state")?.query_row([], |row| revision(row, 0))
}

/// The key in the first column.
pub(super) fn key(row: &Row<'_>) -> rusqlite::Result<String> {
    let bytes = row.get_ref(0)?.as_blob()?;
    match std::str::from_utf8(bytes) {
        Ok(key) => Ok(key.to_owned()),
        Err(error) => Err(rusqlite::Error::Utf8Error(0, error)),
    }
}

fn value(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

pub(super) fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    Ok(Revision(unsigned(row, column)?))
}

fn lease(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<LeaseId>> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => Ok(Some(LeaseId(unsigned(row, column)?))),
    }
}

/// Numbers are below 2^63 (SQLite's integers are signed).
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}
