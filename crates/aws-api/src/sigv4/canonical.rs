//! The canonical request.

use std::borrow::Cow;

use http::header::HOST;
use http::request::Parts;
use percent_encoding::percent_decode_str;

/// Where a request's parts are written canonically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathStyle {
    /// Dot segments and repeated slashes removed, and percent signs encoded once more: all services
    /// but S3.
    Normalized,
    /// As the client wrote it: S3.
    Verbatim,
}

impl PathStyle {
    /// How `service` (a signing name) has it.
    pub fn of(service: &str) -> Self {
        match service {
            "s3" | "s3-object-lambda" | "s3express" => Self::Verbatim,
            _ => Self::Normalized,
        }
    }
}

/// A query's parameters, decoded, in their order.
#[derive(Debug, Default)]
pub struct Query(Vec<(Vec<u8>, Vec<u8>)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let parts = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        let pairs = parts.map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter, if it is UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name.as_bytes())?;
        std::str::from_utf8(value).ok()
    }

    /// The value of a parameter that may occur once. Err if it occurs more often.
    pub fn single(&self, name: &str) -> Result<Option<&str>, ()> {
        let count = self.0.iter().filter(|(key, _)| key == name.as_bytes()).count();
        if count > 1 { Err(()) } else { Ok(self.get(name)) }
    }

    /// Encoded and sorted by name, then value. A presigned request's signature is not part of what
    /// it signs.
    fn canonical(&self) -> String {
        let pairs = self.0.iter().filter(|(name, _)| name != b"X-Amz-Signature");
        let mut pairs: Vec<_> =
            pairs.map(|(name, value)| (encode(name, false), encode(value, false))).collect();
        pairs.sort();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("&")
    }
}

/// Percent-decoded, and `+` as the space that it is in a query.
fn decode(text: &str) -> Vec<u8> {
    percent_decode_str(&text.replace('+', " ")).collect()
}

/// RFC 3986's unreserved characters stay, and with `slash` the slash; all else is `%XX`.
fn encode(bytes: &[u8], slash: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            b'/' if slash => text.push('/'),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The canonical form of a path as the request line has it.
pub fn path(path: &str, style: PathStyle) -> String {
    match style {
        PathStyle::Verbatim => {
            let decoded: Vec<u8> = percent_decode_str(path).collect();
            encode(if decoded.is_empty() { b"/" } else { &decoded }, true)
        }
        PathStyle::Normalized => encode(normalize(path).as_bytes(), true),
    }
}

/// Removes `.` and `..` segments (RFC 3986 §5.2.4) and empty ones; a final slash stays.
fn normalize(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let open = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    let end = if open && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// A signed header's canonical value: all its occurrences, trimmed, inner runs of spaces as one,
/// joined with commas. HTTP/2 has the host in `:authority`. None if the request lacks it.
fn header_value(parts: &Parts, name: &str) -> Option<Vec<u8>> {
    let values: Vec<Vec<u8>> =
        parts.headers.get_all(name).iter().map(|value| fold(value.as_bytes())).collect();
    if !values.is_empty() {
        return Some(values.join(&b","[..]));
    }
    let authority = parts.uri.authority().filter(|_| name == HOST.as_str())?;
    Some(authority.as_str().as_bytes().to_vec())
}

fn fold(value: &[u8]) -> Vec<u8> {
    let mut folded = Vec::with_capacity(value.len());
    for &byte in value.trim_ascii() {
        let byte = if byte == b'\t' { b' ' } else { byte };
        if byte != b' ' || folded.last() != Some(&b' ') {
            folded.push(byte);
        }
    }
    folded
}

/// What the canonical request is made of.
pub struct Canonical<'a> {
    pub parts: &'a Parts,
    pub query: &'a Query,
    pub style: PathStyle,
    pub signed_headers: &'a [String],
    pub payload_hash: &'a str,
}

impl Canonical<'_> {
    /// The request's SHA-256. A signed header that the request lacks counts as empty, so that the
    /// signature of a request stripped of it cannot match.
    pub fn hash(&self) -> String {
        super::sha256_hex(&self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut names: Cow<'_, [String]> = Cow::Borrowed(self.signed_headers);
        if !names.is_sorted() {
            names.to_mut().sort();
        }
        let mut request = format!(
            "{}\n{}\n{}\n",
            self.parts.method,
            path(self.parts.uri.path(), self.style),
            self.query.canonical()
        )
        .into_bytes();
        for name in names.iter() {
            request.extend(name.as_bytes());
            request.push(b':');
            request.extend(header_value(self.parts, name).unwrap_or_default());
            request.push(b'\n');
        }
        request.push(b'\n');
        request.extend(names.join(";").as_bytes());
        request.push(b'\n');
        request.extend(self.payload_hash.as_bytes());
        request
    }
}

/// The string to sign of a request.
pub fn string_to_sign(date: &str, scope: &str, canonical_hash: &str) -> String {
    format!("{}\n{date}\n{scope}\n{canonical_hash}", super::ALGORITHM)
}
