//! Bodies sent in signed chunks (`aws-chunked`).
//!
//! Each chunk is `size;chunk-signature=hex CRLF data CRLF`, its signature following from the one
//! before; the last is empty, and trailing headers may come after it
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html>).

use bytes::{Bytes, BytesMut};
use http::request::Parts;

use super::{ALGORITHM, SigningKey, sha256_hex};
use crate::Error;
use crate::error::common;

/// How long a chunk's or trailer's line may be, in bytes.
const MAX_LINE: usize = 4096;

/// How many trailing headers there may be.
const MAX_TRAILERS: usize = 32;

/// The forms of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    signed: bool,
    trailers: bool,
}

impl Chunking {
    /// The form that a value of `x-amz-content-sha256` names.
    pub fn named(name: &str) -> Option<Self> {
        let (signed, trailers) = match name {
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => (true, false),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => (true, true),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => (false, true),
            _ => return None,
        };
        Some(Self { signed, trailers })
    }

    /// Whether the signature says nothing of the body.
    pub fn is_unsigned(self) -> bool {
        !self.signed
    }
}

/// Signs the chunks of one request.
pub struct Signer<'a> {
    pub key: &'a SigningKey,
    pub time: &'a str,
    pub scope: &'a str,
}

impl Signer<'_> {
    fn chunk(&self, previous: &str, data: &[u8]) -> String {
        format!(
            "{ALGORITHM}-PAYLOAD\n{}\n{}\n{previous}\n{}\n{}",
            self.time,
            self.scope,
            sha256_hex(b""),
            sha256_hex(data)
        )
    }

    fn trailers(&self, previous: &str, trailers: &[u8]) -> String {
        format!("{ALGORITHM}-TRAILER\n{}\n{}\n{previous}\n{}", self.time, self.scope, sha256_hex(trailers))
    }
}

/// Verifies all chunks and returns their data. `seed` is the request's own signature.
///
/// # Errors
/// InvalidSignatureException if a signature does not match; IncompleteBody if the framing or the
/// announced length does not hold.
pub fn decode(
    parts: &Parts,
    body: &Bytes,
    chunking: Chunking,
    signer: &Signer,
    seed: &str,
) -> Result<Bytes, Error> {
    let mut rest: &[u8] = body;
    let mut data = BytesMut::with_capacity(body.len());
    let mut previous = seed.to_owned();
    loop {
        let line = take_line(&mut rest)?;
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let size = parse_size(size).ok_or_else(malformed)?;
        let chunk = rest.get(..size).ok_or_else(malformed)?;
        if chunking.signed {
            let signature = extension.strip_prefix("chunk-signature=").ok_or_else(malformed)?;
            if !signer.key.matches(&signer.chunk(&previous, chunk), signature) {
                return Err(mismatch());
            }
            previous = signature.to_owned();
        }
        data.extend_from_slice(chunk);
        rest = &rest[size..];
        if size == 0 {
            break;
        }
        rest = rest.strip_prefix(b"\r\n").ok_or_else(malformed)?;
    }
    if chunking.trailers {
        trailers(&mut rest, chunking, signer, &previous)?;
    } else {
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    }
    if !rest.is_empty() || announced(parts).is_some_and(|length| length != data.len()) {
        return Err(malformed());
    }
    Ok(data.freeze())
}

/// Reads the trailing headers up to the empty line, and verifies their signature. Their content (a
/// checksum of the body) adds nothing to signed chunks, and is not checked.
fn trailers(rest: &mut &[u8], chunking: Chunking, signer: &Signer, previous: &str) -> Result<(), Error> {
    let mut canonical = Vec::new();
    let mut signature = None;
    for _ in 0..MAX_TRAILERS {
        if rest.is_empty() {
            break;
        }
        let line = take_line(rest)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "x-amz-trailer-signature" {
            signature = Some(value.to_owned());
        } else {
            canonical.push(format!("{name}:{value}\n"));
        }
    }
    if !chunking.signed {
        return Ok(());
    }
    canonical.sort();
    let text = signer.trailers(previous, canonical.concat().as_bytes());
    match signature {
        Some(signature) if signer.key.matches(&text, &signature) => Ok(()),
        Some(_) => Err(mismatch()),
        None => Err(malformed()),
    }
}

/// Takes a line and its CRLF. S3's documents end trailers with a bare LF in places: both are taken.
fn take_line<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Error> {
    let window = &rest[..rest.len().min(MAX_LINE)];
    let end = window.iter().position(|byte| *byte == b'\n').ok_or_else(malformed)?;
    let line = window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]);
    *rest = &rest[end + 1..];
    std::str::from_utf8(line).map_err(|_| malformed())
}

/// Hexadecimal digits only: no sign, no prefix.
fn parse_size(text: &str) -> Option<usize> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    usize::from_str_radix(text, 16).ok()
}

fn announced(parts: &Parts) -> Option<usize> {
    parts.headers.get("x-amz-decoded-content-length")?.to_str().ok()?.parse().ok()
}

fn malformed() -> Error {
    Error::new(
        "IncompleteBody",
        400,
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
    )
}

fn mismatch() -> Error {
    common::invalid_signature("The signature of a chunk of the body does not match.")
}
