//! Pagination tokens: opaque to clients, signed so that a made-up one is refused.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use super::LogError;
use super::keys::{GroupId, Position, StreamId, number};

/// Signs and reads tokens with a key of this store.
pub(super) struct Tokens {
    key: hmac::Key,
}

/// Which way a `GetLogEvents` token leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
}

impl Direction {
    fn prefix(self) -> &'static str {
        match self {
            Self::Forward => "f/",
            Self::Backward => "b/",
        }
    }
}

/// What a token is for: one cannot be used in another's place.
const STREAM: u8 = 1;
const FILTER: u8 = 2;
const LISTING: u8 = 3;

impl Tokens {
    pub fn new(secret: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// A place in one stream. Equal places give equal tokens: a client knows from that that it
    /// reached the end.
    pub fn stream(&self, direction: Direction, group: GroupId, stream: StreamId, at: Position) -> String {
        let body = [
            [STREAM].as_slice(),
            direction.prefix().as_bytes(),
            &group.to_be_bytes(),
            &stream.to_be_bytes(),
            &at.time.to_be_bytes(),
            &at.seq.to_be_bytes(),
        ];
        format!("{}{}", direction.prefix(), self.seal(&body.concat()))
    }

    pub fn read_stream(
        &self,
        token: &str,
        group: GroupId,
        stream: StreamId,
    ) -> Result<(Direction, Position), LogError> {
        let directions = [Direction::Forward, Direction::Backward];
        let (direction, sealed) = directions
            .into_iter()
            .find_map(|d| Some((d, token.strip_prefix(d.prefix())?)))
            .ok_or(LogError::InvalidToken)?;
        let expected =
            [[STREAM].as_slice(), direction.prefix().as_bytes(), &group.to_be_bytes(), &stream.to_be_bytes()];
        Ok((direction, position(&self.open(sealed, &expected.concat())?)?))
    }

    /// A place among the events of a whole group.
    pub fn filter(&self, group: GroupId, at: Position) -> String {
        let body = [[FILTER].as_slice(), &group.to_be_bytes(), &at.time.to_be_bytes(), &at.seq.to_be_bytes()];
        self.seal(&body.concat())
    }

    pub fn read_filter(&self, token: &str, group: GroupId) -> Result<Position, LogError> {
        let expected = [[FILTER].as_slice(), &group.to_be_bytes()].concat();
        position(&self.open(token, &expected)?)
    }

    /// A place in a list: the key after which it goes on. `list` says which list.
    pub fn listing(&self, list: &str, after: &[u8]) -> String {
        self.seal(&[[LISTING].as_slice(), list.as_bytes(), &[0], after].concat())
    }

    pub fn read_listing(&self, token: &str, list: &str) -> Result<Vec<u8>, LogError> {
        self.open(token, &[[LISTING].as_slice(), list.as_bytes(), &[0]].concat())
    }

    fn seal(&self, body: &[u8]) -> String {
        let tag = hmac::sign(&self.key, body);
        URL_SAFE_NO_PAD.encode([tag.as_ref(), body].concat())
    }

    /// What follows `expected` in a token that this store signed.
    fn open(&self, token: &str, expected: &[u8]) -> Result<Vec<u8>, LogError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| LogError::InvalidToken)?;
        let (tag, body) = bytes.split_at_checked(32).ok_or(LogError::InvalidToken)?;
        hmac::verify(&self.key, body, tag).map_err(|_| LogError::InvalidToken)?;
        body.strip_prefix(expected).map(<[u8]>::to_vec).ok_or(LogError::InvalidToken)
    }
}

fn position(bytes: &[u8]) -> Result<Position, LogError> {
    let (time, seq) = bytes.split_at_checked(8).ok_or(LogError::InvalidToken)?;
    let read = |part| number(part).map_err(|_| LogError::InvalidToken);
    Ok(Position { time: read(time)? as i64, seq: read(seq)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_refuse_everything_else() {
        let tokens = Tokens::new(b"secret");
        let at = Position { time: -1, seq: 7 };
        let token = tokens.stream(Direction::Forward, 1, 2, at);
        assert_eq!(token, tokens.stream(Direction::Forward, 1, 2, at));
        assert_eq!(tokens.read_stream(&token, 1, 2).ok(), Some((Direction::Forward, at)));
        assert!(tokens.read_stream(&token, 1, 3).is_err());
        assert!(tokens.read_stream(&token.replacen('f', "b", 1), 1, 2).is_err());
        assert!(Tokens::new(b"other").read_stream(&token, 1, 2).is_err());
        assert!(tokens.read_filter(token.trim_start_matches("f/"), 1).is_err());
        let listing = tokens.listing("groups", b"name");
        assert_eq!(tokens.read_listing(&listing, "groups").ok().as_deref(), Some(b"name".as_slice()));
        assert!(tokens.read_listing(&listing, "streams").is_err());
        for i in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert!(tokens.read_stream(&changed, 1, 2).is_err(), "{changed}");
        }
    }
}
