//! Uploads: begin (whole, mounted or in parts), append, finish, look, cancel.

use axum::body::Body;
use axum::response::Response;
use http::header;
use http::{Method, StatusCode};

use super::super::error::RegistryError;
use super::super::name::{Digest, NameError, RepositoryName, UploadId};
use super::super::upload::Session;
use super::error::{ApiError, Code, only};
use super::{Call, empty, finish};

/// `POST /v2/<name>/blobs/uploads/`: begins an upload; with `digest` the body is the whole blob; with
/// `mount` the blob is taken from another repository if it is there.
pub async fn begin(call: Call, body: Body, name: RepositoryName) -> Result<Response, ApiError> {
    only(&call.method, &[Method::POST])?;
    let registry = call.registry.clone();
    if let Some(mount) = call.query("mount") {
        let digest = parse_digest(mount)?;
        let from = match call.query("from") {
            Some(from) => {
                Some(from.parse().map_err(|error: NameError| ApiError::new(Code::NameInvalid, error))?)
            }
            None => None,
        };
        if registry.mount_blob(&call.namespace, &name, from.as_ref(), &digest).await?.is_some() {
            return created(&name, &digest);
        }
    }
    let digest = call.query("digest").map(parse_digest).transpose()?;
    let session = registry.begin_upload(&call.namespace, &name).await?;
    let Some(digest) = digest else {
        return accepted(&name, session.id(), 0, StatusCode::ACCEPTED);
    };
    let body = body.into_data_stream();
    // On a task of its own: the client was not told of the session and cannot go on with it, so it has
    // to be cancelled even if the client goes away.
    let (namespace, repository) = (call.namespace.clone(), name.clone());
    let stored = tokio::spawn(async move {
        let stored = async {
            registry.append_upload(&session, Some(0), None, body).await?;
            registry.finish_upload(&namespace, &repository, &session, digest).await
        };
        let stored = stored.await;
        if stored.is_err() {
            let _ = registry.cancel_upload(&session).await;
        }
        stored
    });
    stored.await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))?;
    created(&name, &digest)
}

/// GET, PATCH, PUT and DELETE of an upload.
pub async fn serve(call: Call, body: Body, name: RepositoryName, id: UploadId) -> Result<Response, ApiError> {
    only(&call.method, &[Method::GET, Method::PATCH, Method::PUT, Method::DELETE])?;
    let registry = call.registry.clone();
    let session = registry.upload(&call.namespace, &name, id)?;
    match call.method {
        Method::PATCH => {
            let offset = append(&call, body, &name, &session).await?;
            accepted(&name, id, offset, StatusCode::ACCEPTED)
        }
        Method::PUT => {
            let digest = call.query("digest").ok_or_else(|| {
                ApiError::new(Code::DigestInvalid, "the request has no query parameter 'digest'")
            })?;
            let digest = parse_digest(digest)?;
            append(&call, body, &name, &session).await?;
            registry.finish_upload(&call.namespace, &name, &session, digest).await?;
            created(&name, &digest)
        }
        Method::DELETE => {
            registry.cancel_upload(&session).await?;
            finish(Response::builder().status(StatusCode::NO_CONTENT), Body::empty())
        }
        _ => {
            let offset = session.offset().await?;
            accepted(&name, id, offset, StatusCode::NO_CONTENT)
        }
    }
}

/// Appends the request's body. A Content-Range says where it belongs.
async fn append(call: &Call, body: Body, name: &RepositoryName, session: &Session) -> Result<u64, ApiError> {
    let (start, length) = match call.header(header::CONTENT_RANGE) {
        Some(value) => {
            let (start, length) = parse_content_range(value).ok_or_else(|| {
                ApiError::new(Code::BlobUploadInvalid, "Content-Range has the form <first byte>-<last byte>")
            })?;
            let announced = call.header(header::CONTENT_LENGTH).and_then(|value| value.parse::<u64>().ok());
            if announced.is_some_and(|announced| announced != length) {
                return Err(ApiError::new(
                    Code::SizeInvalid,
                    "Content-Range and Content-Length do not agree",
                ));
            }
            (Some(start), Some(length))
        }
        None => (None, None),
    };
    let body = body.into_data_stream();
    let appended = call.registry.append_upload(session, start, length, body).await;
    appended.map_err(|error| match error {
        RegistryError::OffsetMismatch { expected } => ApiError::from(error)
            .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
            .with_header(header::LOCATION, location(name, session.id()))
            .with_header(header::RANGE, received(expected)),
        error => error.into(),
    })
}

/// First byte and length of `<first>-<last>`, as the specification writes it, or of RFC 9110's
/// `bytes <first>-<last>/<whole>`.
fn parse_content_range(value: &str) -> Option<(u64, u64)> {
    let value = value.trim();
    let value = value.strip_prefix("bytes").map_or(value, |rest| rest.trim_start_matches([' ', '=']));
    let (range, _) = value.split_once('/').unwrap_or((value, ""));
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    Some((first, last.checked_sub(first)?.checked_add(1)?))
}

fn parse_digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error: NameError| ApiError::new(Code::DigestInvalid, error))
}

fn location(name: &RepositoryName, id: UploadId) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

/// The Range header for so many bytes received. Nothing is `0-0`, as every registry says it.
fn received(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

fn accepted(
    name: &RepositoryName,
    id: UploadId,
    offset: u64,
    status: StatusCode,
) -> Result<Response, ApiError> {
    let response = match status {
        StatusCode::NO_CONTENT => Response::builder().status(status),
        status => empty(status),
    };
    let response = response
        .header(header::LOCATION, location(name, id))
        .header(header::RANGE, received(offset))
        .header("docker-upload-uuid", id.to_string());
    finish(response, Body::empty())
}

fn created(name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let response = empty(StatusCode::CREATED)
        .header(header::LOCATION, format!("/v2/{name}/blobs/{digest}"))
        .header("docker-content-digest", digest.to_string());
    finish(response, Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_in_both_forms() {
        assert_eq!(parse_content_range("0-9"), Some((0, 10)));
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, 5)));
        assert_eq!(parse_content_range("bytes=5-5"), Some((5, 1)));
        for bad in ["", "5", "9-5", "a-b", "-5", "5-", "0-18446744073709551615"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
