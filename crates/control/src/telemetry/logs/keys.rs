//! Where things lie in the store's two keyspaces. Numbers are big-endian, so that keys sort as they do.
//!
//! `meta`: a tag, then
//! - `g` account 0 region 0 name: a group
//! - `s` group-id name: a stream
//! - `n` group-id stream-id: a stream's name
//! - `b` group-id: bytes stored in a group
//! - `c` source: how far a source's records are stored
//! - `x` group-id \[stream-id\]: a deleted group or stream whose events are still to be erased
//! - `q`: ids below it may have been given out; `k`: the key that signs tokens; `v`: the format
//!
//! `events`: group-id stream-id time sequence-number.

use super::LogError;
use crate::keys::Scope;

pub(super) const SEQUENCE: &[u8] = b"q";
pub(super) const TOKEN_SECRET: &[u8] = b"k";
pub(super) const FORMAT: &[u8] = b"v";
pub(super) const TRASH: &[u8] = b"x";
pub(super) const CURSORS: &[u8] = b"c";
pub(super) const GROUPS: &[u8] = b"g";

/// Given out once and never again, so what is left of a deleted group is never taken for a new one.
pub(super) type GroupId = u64;
pub(super) type StreamId = u64;

/// A place between events in the order (time, arrival); the event with these very numbers comes
/// after it. Arrival numbers are unique in the store, so the order is the same over several streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// Milliseconds since the epoch.
    pub time: i64,
    pub seq: u64,
}

impl Position {
    pub const MAX: Self = Self { time: i64::MAX, seq: u64::MAX };

    pub fn start_of(time: i64) -> Self {
        Self { time, seq: 0 }
    }

    /// The place right after the event at this one.
    pub fn after(self) -> Self {
        Self { time: self.time, seq: self.seq.saturating_add(1) }
    }
}

/// Groups of a scope whose names begin with `prefix`; with a whole name, the group itself.
pub(super) fn group(scope: &Scope, prefix: &str) -> Vec<u8> {
    [
        GROUPS,
        scope.account.as_str().as_bytes(),
        &[0],
        scope.region.as_str().as_bytes(),
        &[0],
        prefix.as_bytes(),
    ]
    .concat()
}

/// Streams of a group whose names begin with `prefix`; with a whole name, the stream itself.
pub(super) fn stream(group: GroupId, prefix: &str) -> Vec<u8> {
    [b"s", group.to_be_bytes().as_slice(), prefix.as_bytes()].concat()
}

/// Bytes before the name in a stream's key.
pub(super) const STREAM_NAME_AT: usize = 9;

pub(super) fn stream_name(group: GroupId, stream: StreamId) -> Vec<u8> {
    [b"n", group.to_be_bytes().as_slice(), &stream.to_be_bytes()].concat()
}

pub(super) fn stream_names(group: GroupId) -> Vec<u8> {
    [b"n", group.to_be_bytes().as_slice()].concat()
}

pub(super) fn stored_bytes(group: GroupId) -> Vec<u8> {
    [b"b", group.to_be_bytes().as_slice()].concat()
}

pub(super) fn cursor(source: &str) -> Vec<u8> {
    [CURSORS, source.as_bytes()].concat()
}

pub(super) fn trash(group: GroupId, stream: Option<StreamId>) -> Vec<u8> {
    let mut key = [TRASH, &group.to_be_bytes()].concat();
    key.extend(stream.map(StreamId::to_be_bytes).into_iter().flatten());
    key
}

/// The inverse of [`trash`].
pub(super) fn parse_trash(key: &[u8]) -> Result<(GroupId, Option<StreamId>), LogError> {
    let corrupt = LogError::Corrupt("trash key");
    let (group, stream) = key.get(1..9).zip(key.get(9..)).ok_or(corrupt.clone())?;
    match stream.len() {
        0 => Ok((number(group)?, None)),
        8 => Ok((number(group)?, Some(number(stream)?))),
        _ => Err(corrupt),
    }
}

pub(super) fn event(group: GroupId, stream: StreamId, at: Position) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    key.extend(group.to_be_bytes());
    key.extend(stream.to_be_bytes());
    // Flipping the sign bit makes negative times sort before positive ones.
    key.extend((at.time as u64 ^ 1 << 63).to_be_bytes());
    key.extend(at.seq.to_be_bytes());
    key
}

/// Prefix of all events of a group, or of one stream in it.
pub(super) fn events(group: GroupId, stream: Option<StreamId>) -> Vec<u8> {
    let mut key = group.to_be_bytes().to_vec();
    key.extend(stream.map(StreamId::to_be_bytes).into_iter().flatten());
    key
}

/// The position in an event's key.
pub(super) fn event_position(key: &[u8]) -> Result<Position, LogError> {
    let (time, seq) = key.get(16..24).zip(key.get(24..32)).ok_or(LogError::Corrupt("event key"))?;
    Ok(Position { time: (number(time)? ^ 1 << 63) as i64, seq: number(seq)? })
}

pub(super) fn number(bytes: &[u8]) -> Result<u64, LogError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| LogError::Corrupt("number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_keys_sort_by_time_then_arrival() {
        let positions = [(-5, 9), (0, 0), (0, 1), (7, 0), (i64::MAX, u64::MAX)];
        let positions = positions.map(|(time, seq)| Position { time, seq });
        let keys = positions.map(|at| event(1, 2, at));
        assert!(keys.is_sorted());
        for (key, at) in keys.iter().zip(positions) {
            assert_eq!(event_position(key).ok(), Some(at));
        }
    }

    #[test]
    fn trash_keys_round_trip() {
        for (group, stream) in [(1, None), (1, Some(2)), (u64::MAX, Some(0))] {
            assert_eq!(parse_trash(&trash(group, stream)).ok(), Some((group, stream)));
        }
        assert!(parse_trash(b"x123").is_err());
    }
}
