//! Blobs: reading (whole or a range), deleting.

use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::super::name::{Digest, RepositoryName};
use super::error::{ApiError, Code};
use super::{Call, empty, finish};

/// Bytes read from a blob's file at once.
const READ: usize = 256 << 10;

/// GET, HEAD and DELETE of a blob.
pub async fn serve(call: Call, name: RepositoryName, digest: Digest) -> Result<Response, ApiError> {
    match call.method {
        Method::HEAD => head(&call, &name, &digest).await,
        Method::GET => get(&call, &name, &digest).await,
        Method::DELETE => {
            call.registry.unlink_blob(&call.namespace, &name, &digest).await?;
            finish(empty(StatusCode::ACCEPTED), Body::empty())
        }
        _ => Err(ApiError::method()),
    }
}

fn headers(status: StatusCode, digest: &Digest, length: u64) -> http::response::Builder {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
        .header(header::CONTENT_LENGTH, length)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{digest}\""))
        .header("docker-content-digest", digest.to_string())
}

async fn head(call: &Call, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let (registry, namespace) = (&call.registry, &call.namespace);
    let link = if call.may_push() {
        // A pusher asks so as not to send it: keep it until the manifest comes.
        registry.touch_blob(namespace, name, digest).await?
    } else {
        registry.blob(namespace, name, digest).await?
    };
    finish(headers(StatusCode::OK, digest, link.bytes), Body::empty())
}

async fn get(call: &Call, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let (file, length) = call.registry.open_blob(&call.namespace, name, digest).await?;
    let unchanged = call.header(header::IF_RANGE).is_none_or(|tag| tag == format!("\"{digest}\""));
    let range = call.header(header::RANGE).filter(|_| unchanged).map(|value| parse_range(value, length));
    let (status, start, count) = match range {
        None | Some(Requested::Whole) => (StatusCode::OK, 0, length),
        Some(Requested::Part { start, end }) => (StatusCode::PARTIAL_CONTENT, start, end - start + 1),
        Some(Requested::Unsatisfiable) => {
            return Err(ApiError::new(Code::SizeInvalid, format!("the blob has {length} bytes"))
                .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
                .with_header(header::CONTENT_RANGE, format!("bytes */{length}")));
        }
    };
    let mut file = tokio::fs::File::from_std(file);
    if start > 0 {
        file.seek(std::io::SeekFrom::Start(start)).await.map_err(super::super::RegistryError::from)?;
    }
    let mut response = headers(status, digest, count);
    if status == StatusCode::PARTIAL_CONTENT {
        response =
            response.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{length}", start + count - 1));
    }
    let stream = ReaderStream::with_capacity(file.take(count), READ);
    finish(response, Body::from_stream(stream))
}

/// What a Range header asks for (RFC 9110 §14.2).
#[derive(Debug, PartialEq, Eq)]
enum Requested {
    /// Everything: the header is not a single byte range, and may be ignored.
    Whole,
    /// These bytes, both ends included.
    Part { start: u64, end: u64 },
    /// Nothing that there is.
    Unsatisfiable,
}

fn parse_range(value: &str, length: u64) -> Requested {
    let Some((first, last)) = value.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Requested::Whole;
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    match (first, last) {
        ("", suffix) => match number(suffix) {
            Some(0) => Requested::Unsatisfiable,
            Some(_) if length == 0 => Requested::Unsatisfiable,
            Some(count) => Requested::Part { start: length.saturating_sub(count), end: length - 1 },
            None => Requested::Whole,
        },
        (first, last) => {
            let end = if last.is_empty() { Some(u64::MAX) } else { number(last) };
            match (number(first), end) {
                (Some(start), Some(end)) if start > end => Requested::Whole,
                (Some(start), Some(_)) if start >= length => Requested::Unsatisfiable,
                (Some(start), Some(end)) => Requested::Part { start, end: end.min(length - 1) },
                _ => Requested::Whole,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_rfc_9110() {
        let part = |start, end| Requested::Part { start, end };
        for (value, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-5", part(2, 5)),
            ("bytes=2-", part(2, 9)),
            ("bytes=2-99", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=-0", Requested::Unsatisfiable),
            ("bytes=10-", Requested::Unsatisfiable),
            ("bytes=5-2", Requested::Whole),
            ("bytes=0-1,3-4", Requested::Whole),
            ("bytes=a-b", Requested::Whole),
            ("bytes=+1-2", Requested::Whole),
            ("bytes=-", Requested::Whole),
            ("items=0-1", Requested::Whole),
            ("bytes=99999999999999999999-", Requested::Whole),
        ] {
            assert_eq!(parse_range(value, 10), expected, "{value}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Requested::Unsatisfiable);
        assert_eq!(parse_range("bytes=-5", 0), Requested::Unsatisfiable);
    }
}
