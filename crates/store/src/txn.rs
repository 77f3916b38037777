//! Compare-and-swap transactions.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;

use crate::{Error, LeaseId, Revision};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// The longest value, in bytes: 1.5 MiB, etcd's default `--max-request-bytes`.
pub const MAX_VALUE_BYTES: usize = 1_572_864;
/// The most guards, and the most writes, that one transaction may have. (etcd's default
/// `--max-txn-ops` is 128: a server used with Coracle is started with this value.)
pub const MAX_TXN_OPERATIONS: usize = 1024;
/// The most bytes of keys and values together that one transaction may have.
pub const MAX_TXN_BYTES: usize = 8 << 20;

/// A transaction: guards, all of which must hold, and writes, all of which then happen at once.
///
/// The guards see the state before the writes. A key may be put once, and not be put and deleted in
/// the same transaction (etcd's rule): [`Error::DuplicateKey`].
#[derive(Default)]
pub struct Txn {
    pub(crate) guards: Vec<Guard>,
    pub(crate) writes: Vec<Write>,
    /// The first error of building it, reported by the commit.
    invalid: Option<Error>,
}

#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) key: String,
    pub(crate) expect: Expect,
}

#[derive(Debug)]
pub(crate) enum Expect {
    Absent,
    Exists,
    Revision(Revision),
}

pub(crate) enum Write {
    Put { key: String, value: Bytes, lease: Option<LeaseId> },
    Delete { key: String },
    DeletePrefix { prefix: String },
}

impl Txn {
    /// A transaction that does nothing yet.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Guard: there is no such key.
    pub fn expect_absent(self, key: impl Into<String>) -> Txn {
        self.expect(key, Expect::Absent)
    }

    /// Guard: the key was last written at `revision` (its
    /// [`mod_revision`](crate::KeyValue::mod_revision)), and not deleted since.
    pub fn expect_revision(self, key: impl Into<String>, revision: Revision) -> Txn {
        self.expect(key, Expect::Revision(revision))
    }

    /// Guard: the key exists.
    pub fn expect_exists(self, key: impl Into<String>) -> Txn {
        self.expect(key, Expect::Exists)
    }

    /// Writes `value` to the key, and detaches it from any lease.
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        self.write(Write::Put { key: key.into(), value: value.into(), lease: None })
    }

    /// Writes `value` to the key and attaches it to `lease`. The commit fails with
    /// [`Error::LeaseNotFound`] if the lease has ended.
    pub fn put_with_lease(self, key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Txn {
        self.write(Write::Put { key: key.into(), value: value.into(), lease: Some(lease) })
    }

    /// Writes `value` as JSON to the key. A value that has no JSON form makes the commit fail with
    /// [`Error::Encode`].
    pub fn put_json<T: Serialize + ?Sized>(self, key: impl Into<String>, value: &T) -> Txn {
        self.put_json_as(key.into(), value, None)
    }

    /// [`put_json`](Txn::put_json), attached to `lease`.
    pub fn put_json_with_lease<T: Serialize + ?Sized>(
        self,
        key: impl Into<String>,
        value: &T,
        lease: LeaseId,
    ) -> Txn {
        self.put_json_as(key.into(), value, Some(lease))
    }

    fn put_json_as<T: Serialize + ?Sized>(mut self, key: String, value: &T, lease: Option<LeaseId>) -> Txn {
        match serde_json::to_vec(value) {
            Ok(json) => self.write(Write::Put { key, value: json.into(), lease }),
            Err(source) => {
                self.invalid.get_or_insert(Error::Encode { key, source });
                self
            }
        }
    }

    /// Deletes the key if it exists.
    pub fn delete(self, key: impl Into<String>) -> Txn {
        self.write(Write::Delete { key: key.into() })
    }

    /// Deletes every key that begins with `prefix`; the empty prefix means all keys.
    pub fn delete_prefix(self, prefix: impl Into<String>) -> Txn {
        self.write(Write::DeletePrefix { prefix: prefix.into() })
    }

    /// Whether it has neither guards nor writes.
    pub fn is_empty(&self) -> bool {
        self.guards.is_empty() && self.writes.is_empty() && self.invalid.is_none()
    }

    fn expect(mut self, key: impl Into<String>, expect: Expect) -> Txn {
        self.guards.push(Guard { key: key.into(), expect });
        self
    }

    fn write(mut self, write: Write) -> Txn {
        self.writes.push(write);
        self
    }

    /// The size that [`MAX_TXN_BYTES`] bounds.
    pub(crate) fn bytes(&self) -> usize {
        let guards: usize = self.guards.iter().map(|guard| guard.key.len()).sum();
        let writes: usize = self.writes.iter().map(Write::bytes).sum();
        guards + writes
    }

    /// The transaction itself if it keeps the limits that hold for every engine.
    pub(crate) fn check(mut self) -> Result<Txn, Error> {
        if let Some(error) = self.invalid.take() {
            return Err(error);
        }
        let operations = self.guards.len().max(self.writes.len());
        if operations > MAX_TXN_OPERATIONS {
            return Err(Error::TooManyOperations { operations });
        }
        let bytes = self.bytes();
        if bytes > MAX_TXN_BYTES {
            return Err(Error::TransactionTooLarge { bytes });
        }
        for guard in &self.guards {
            check_key(&guard.key)?;
        }
        for write in &self.writes {
            match write {
                Write::Put { key, value, .. } => {
                    check_key(key)?;
                    if value.len() > MAX_VALUE_BYTES {
                        return Err(Error::ValueTooLarge { key: key.clone(), bytes: value.len() });
                    }
                }
                Write::Delete { key } => check_key(key)?,
                Write::DeletePrefix { prefix } => check_length(prefix)?,
            }
        }
        check_overlaps(&self.writes)?;
        Ok(self)
    }
}

/// Without the values: they may hold secrets.
impl fmt::Debug for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn").field("guards", &self.guards).field("writes", &self.writes).finish()
    }
}

impl Write {
    fn bytes(&self) -> usize {
        match self {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
            Write::DeletePrefix { prefix } => prefix.len(),
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Put { key, value, .. } => write!(f, "Put({key:?}, {} bytes)", value.len()),
            Write::Delete { key } => write!(f, "Delete({key:?})"),
            Write::DeletePrefix { prefix } => write!(f, "DeletePrefix({prefix:?})"),
        }
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::EmptyKey);
    }
    check_length(key)
}

fn check_length(key: &str) -> Result<(), Error> {
    if key.len() > MAX_KEY_BYTES {
        // Enough of it to be found in the caller's code, not a megabyte in a log.
        return Err(Error::KeyTooLong { start: key.chars().take(64).collect(), bytes: key.len() });
    }
    Ok(())
}

/// Refuses a second put of a key and a put of a key that the transaction also deletes. (etcd:
/// "duplicate key given in txn request".)
fn check_overlaps(writes: &[Write]) -> Result<(), Error> {
    let mut put = HashSet::new();
    let mut deleted = HashSet::new();
    let mut prefixes = Vec::new();
    for write in writes {
        match write {
            Write::Put { key, .. } => {
                if !put.insert(key.as_str()) {
                    return Err(Error::DuplicateKey { key: key.clone() });
                }
            }
            Write::Delete { key } => {
                deleted.insert(key.as_str());
            }
            Write::DeletePrefix { prefix } => prefixes.push(prefix.as_str()),
        }
    }
    for key in put {
        if deleted.contains(key) || prefixes.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(Error::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(())
}
