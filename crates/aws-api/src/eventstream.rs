//! The `application/vnd.amazon.eventstream` encoding
//! (<https://smithy.io/2.0/aws/amazon-eventstream.html>).
//!
//! A message is a prelude (total length, headers' length, CRC-32 of these), headers, a payload, and
//! the CRC-32 of all before it; integers are big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::Error;

/// The `Content-Type` of a stream.
pub const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";

/// The largest payload (16 MiB), and headers (128 KiB), that the format allows.
const MAX_PAYLOAD: usize = 16 << 20;
const MAX_HEADERS: usize = 128 << 10;

/// Lengths and their CRC; the message's CRC.
const PRELUDE: usize = 12;
const TRAILER: usize = 4;

/// The type of a header's value that is a string; the others are not used by the services.
const STRING: u8 = 7;

/// One event of an operation's output stream.
pub trait Event: Sized {
    /// The `:event-type` header: the member's name in the stream's union.
    fn event_type(&self) -> &'static str;
    /// The JSON payload.
    fn payload(&self) -> Result<Vec<u8>, serde_json::Error>;
    /// Reads a payload; None if the type is unknown.
    fn from_payload(event_type: &str, payload: &[u8]) -> Result<Option<Self>, serde_json::Error>;
}

/// One message: string headers and a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Names (at most 255 bytes) and values (at most 65,535).
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
}

/// Why a message cannot be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("the message is larger than the format allows")]
    TooLarge,
    #[error("the lengths in the message do not fit together")]
    Malformed,
    #[error("a checksum does not match")]
    Checksum,
}

impl Message {
    /// The message that opens the stream of an operation of the JSON protocols: its response without
    /// the stream.
    pub fn initial_response() -> Self {
        Self::json("event", ":event-type", "initial-response", Bytes::from_static(b"{}"))
    }

    /// An event.
    pub fn event(event: &impl Event) -> Result<Self, serde_json::Error> {
        let payload = Bytes::from(event.payload()?);
        Ok(Self::json("event", ":event-type", event.event_type(), payload))
    }

    /// An error that ends the stream. Errors of the stream's union are named by the member, which is
    /// the error's code.
    pub fn exception(error: &Error) -> Self {
        let payload = serde_json::json!({ "message": error.message }).to_string();
        Self::json("exception", ":exception-type", &error.code, Bytes::from(payload))
    }

    fn json(message_type: &str, kind: &str, name: &str, payload: Bytes) -> Self {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = vec![
            header(":message-type", message_type),
            header(kind, name),
            header(":content-type", "application/json"),
        ];
        Self { headers, payload }
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// TooLarge.
    pub fn encode(&self) -> Result<Bytes, StreamError> {
        let mut headers = BytesMut::new();
        for (name, value) in &self.headers {
            headers.put_u8(u8::try_from(name.len()).map_err(|_| StreamError::TooLarge)?);
            headers.put_slice(name.as_bytes());
            headers.put_u8(STRING);
            headers.put_u16(u16::try_from(value.len()).map_err(|_| StreamError::TooLarge)?);
            headers.put_slice(value.as_bytes());
        }
        if headers.len() > MAX_HEADERS || self.payload.len() > MAX_PAYLOAD {
            return Err(StreamError::TooLarge);
        }
        let total = PRELUDE + headers.len() + self.payload.len() + TRAILER;
        let mut message = BytesMut::with_capacity(total);
        // Both fit: they are bounded above.
        message.put_u32(total as u32);
        message.put_u32(headers.len() as u32);
        message.put_u32(crc32fast::hash(&message));
        message.put_slice(&headers);
        message.put_slice(&self.payload);
        message.put_u32(crc32fast::hash(&message));
        Ok(message.freeze())
    }
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Adds bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete message.
    ///
    /// # Errors
    /// After one the stream is lost.
    pub fn next_message(&mut self) -> Result<Option<Message>, StreamError> {
        let Some(mut prelude) = self.buffer.get(..PRELUDE) else {
            return Ok(None);
        };
        let checked = crc32fast::hash(&prelude[..8]);
        let (total, headers) = (prelude.get_u32() as usize, prelude.get_u32() as usize);
        if prelude.get_u32() != checked {
            return Err(StreamError::Checksum);
        }
        let payload = total
            .checked_sub(PRELUDE + TRAILER)
            .and_then(|rest| rest.checked_sub(headers))
            .ok_or(StreamError::Malformed)?;
        if headers > MAX_HEADERS || payload > MAX_PAYLOAD {
            return Err(StreamError::TooLarge);
        }
        if self.buffer.len() < total {
            return Ok(None);
        }
        let mut message = self.buffer.split_to(total).freeze();
        let mut end = message.split_off(total - TRAILER);
        if end.get_u32() != crc32fast::hash(&message) {
            return Err(StreamError::Checksum);
        }
        message.advance(PRELUDE);
        let payload = message.split_off(headers);
        Ok(Some(Message { headers: parse_headers(message)?, payload }))
    }
}

/// Reads string headers and skips those of other types.
fn parse_headers(mut bytes: Bytes) -> Result<Vec<(String, String)>, StreamError> {
    let mut headers = Vec::new();
    while !bytes.is_empty() {
        let length = bytes.get_u8() as usize;
        let name = take(&mut bytes, length)?;
        let kind = take(&mut bytes, 1)?[0];
        let length = match kind {
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            4 => 4,
            5 | 8 => 8,
            6 | STRING => take(&mut bytes, 2)?.get_u16() as usize,
            9 => 16,
            _ => return Err(StreamError::Malformed),
        };
        let value = take(&mut bytes, length)?;
        if kind == STRING {
            let text = |bytes: Bytes| String::from_utf8(bytes.into());
            let (Ok(name), Ok(value)) = (text(name), text(value)) else {
                return Err(StreamError::Malformed);
            };
            headers.push((name, value));
        }
    }
    Ok(headers)
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, StreamError> {
    if bytes.len() < length {
        return Err(StreamError::Malformed);
    }
    Ok(bytes.split_to(length))
}
