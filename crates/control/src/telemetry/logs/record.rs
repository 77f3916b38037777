//! What the store keeps of groups, streams, cursors and events.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LogError;
use super::keys::{GroupId, StreamId};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GroupRecord {
    pub id: GroupId,
    /// Milliseconds since the epoch, as all times here.
    pub created_at: i64,
    pub retention_days: Option<u32>,
    pub class: String,
    pub kms_key_id: Option<String>,
    pub deletion_protection: bool,
    pub tags: BTreeMap<String, String>,
}

impl GroupRecord {
    /// Events before this time are expired; `None` when they are kept for ever.
    pub fn expiry(&self, now: i64) -> Option<i64> {
        let days = i64::from(self.retention_days?);
        Some(now.saturating_sub(days.saturating_mul(super::DAY_MS)))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StreamRecord {
    pub id: StreamId,
    pub created_at: i64,
    /// Times of the oldest and the newest event, and of the last arrival; `None` before the first.
    pub span: Option<Span>,
    /// As the service counts: message bytes and 26 an event.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Span {
    pub first: i64,
    pub last: i64,
    pub ingested_at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CursorRecord {
    pub upto: u64,
    pub updated_at: i64,
}

pub(super) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Records are plain structs with string keys: serialising them to memory cannot fail.
    serde_json::to_vec(record).unwrap_or_default()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, LogError> {
    serde_json::from_slice(bytes).map_err(|_| LogError::Corrupt(what))
}

/// An event's value: when it arrived, then the message.
pub(super) fn encode_event(ingested_at: i64, message: &str) -> Vec<u8> {
    let mut value = Vec::with_capacity(8 + message.len());
    value.extend(ingested_at.to_be_bytes());
    value.extend(message.as_bytes());
    value
}

pub(super) fn decode_event(value: &[u8]) -> Result<(i64, &str), LogError> {
    let corrupt = LogError::Corrupt("event");
    let (ingested, message) = value.split_first_chunk::<8>().ok_or(corrupt.clone())?;
    let message = std::str::from_utf8(message).map_err(|_| corrupt)?;
    Ok((i64::from_be_bytes(*ingested), message))
}

/// What an event counts towards sizes: the message in UTF-8 and 26 bytes
/// (`PutLogEvents` in the API reference).
pub(super) fn billed_size(message_bytes: usize) -> u64 {
    message_bytes as u64 + 26
}
