//! What the store holds: keys with values, counted by revisions, optionally attached to leases.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A point in the store's history: the number of transactions that have changed something. It grows
/// by one with each such transaction and never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease. Below 2^63, as etcd's lease ids are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A key with its value and history.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    /// Empty in the result of a [`Range::keys_only`](crate::Range::keys_only).
    pub value: Bytes,
    /// The revision that created the key; a deletion ends it.
    pub create_revision: Revision,
    /// The revision that last wrote the key: what [`Txn::expect_revision`](crate::Txn::expect_revision)
    /// compares.
    pub mod_revision: Revision,
    /// The lease that the last write attached the key to.
    pub lease: Option<LeaseId>,
}

/// Without the value: it may hold a secret.
impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("value_bytes", &self.value.len())
            .field("create_revision", &self.create_revision.0)
            .field("mod_revision", &self.mod_revision.0)
            .field("lease", &self.lease)
            .finish()
    }
}
