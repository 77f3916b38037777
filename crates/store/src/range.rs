//! Range reads.

use crate::{KeyValue, Revision};

/// A range read: the keys under a prefix, in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub(crate) prefix: String,
    pub(crate) after: Option<String>,
    pub(crate) limit: Option<usize>,
    pub(crate) keys_only: bool,
    pub(crate) reverse: bool,
}

impl Range {
    /// All keys that begin with `prefix`; the empty prefix means all keys.
    pub fn prefix(prefix: impl Into<String>) -> Range {
        Range { prefix: prefix.into(), after: None, limit: None, keys_only: false, reverse: false }
    }

    /// Only the keys that follow `key` in the direction of reading (with [`reverse`](Range::reverse)
    /// the smaller ones): the last key of one page gives the next page. `key` itself need not exist.
    pub fn after(mut self, key: impl Into<String>) -> Range {
        self.after = Some(key.into());
        self
    }

    /// At most `limit` keys; [`RangeResult::more`] tells whether there were more.
    pub fn limit(mut self, limit: usize) -> Range {
        self.limit = Some(limit);
        self
    }

    /// Leaves the values out.
    pub fn keys_only(mut self) -> Range {
        self.keys_only = true;
        self
    }

    /// From the greatest key down.
    pub fn reverse(mut self) -> Range {
        self.reverse = true;
        self
    }

    /// The half-open interval of key bytes `[start, end)` that the range means.
    pub(crate) fn bounds(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut start, mut end) = prefix_bounds(&self.prefix);
        if let Some(after) = &self.after {
            if self.reverse {
                end = end.min(after.as_bytes().to_vec());
            } else {
                // The successor of a byte string is itself and a zero byte.
                let mut next = after.as_bytes().to_vec();
                next.push(0);
                start = start.max(next);
            }
        }
        (start, end)
    }
}

/// The half-open interval of key bytes that begin with `prefix`.
pub(crate) fn prefix_bounds(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let start = prefix.as_bytes().to_vec();
    // UTF-8 has no byte 0xFF (RFC 3629), so adding one to the last byte never overflows, and 0xFF alone is
    // greater than every key.
    let mut end = start.clone();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0xFF),
    }
    (start, end)
}

/// What a range read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    /// In byte order of the keys (descending with [`Range::reverse`]).
    pub kvs: Vec<KeyValue>,
    /// Whether [`Range::limit`] cut the result.
    pub more: bool,
    /// The revision that the whole result is of; a watch from here misses nothing.
    pub revision: Revision,
}
