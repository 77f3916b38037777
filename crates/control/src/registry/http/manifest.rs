//! Manifests: reading, pushing, deleting.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::header;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::super::error::RegistryError;
use super::super::manifest::MAX_MANIFEST_BYTES;
use super::super::name::{Reference, RepositoryName};
use super::super::record::ImageRecord;
use super::error::{ApiError, Code};
use super::{Call, empty, finish};

/// How long a client may take to send a manifest.
const BODY_TIME: Duration = Duration::from_secs(60);

/// GET, HEAD, PUT and DELETE of a manifest.
pub async fn serve(
    call: Call,
    body: Body,
    name: RepositoryName,
    reference: Reference,
) -> Result<Response, ApiError> {
    match call.method {
        Method::GET | Method::HEAD => get(&call, &name, &reference).await,
        Method::PUT => put(&call, body, &name, &reference).await,
        Method::DELETE => {
            let (registry, namespace) = (&call.registry, &call.namespace);
            match &reference {
                // By tag only the tag goes (distribution spec, "Deleting tags").
                Reference::Tag(tag) => {
                    registry.untag_image(namespace, &name, tag, false).await?;
                }
                Reference::Digest(digest) => {
                    registry.delete_image(namespace, &name, digest).await?;
                }
            }
            finish(empty(StatusCode::ACCEPTED), Body::empty())
        }
        _ => Err(ApiError::method()),
    }
}

async fn get(call: &Call, name: &RepositoryName, reference: &Reference) -> Result<Response, ApiError> {
    let registry = &call.registry;
    let image = registry.image(&call.namespace, name, reference).await?;
    let response = headers(&image);
    if call.is(Method::HEAD) {
        return finish(response, Body::empty());
    }
    let bytes = registry.manifest_bytes(&image).await?;
    registry.note_pull(&call.namespace, name, &image).await;
    finish(response, Body::from(bytes))
}

fn headers(image: &ImageRecord) -> http::response::Builder {
    Response::builder()
        .header(header::CONTENT_TYPE, image.media_type.as_str())
        .header(header::CONTENT_LENGTH, image.manifest_bytes)
        .header(header::ETAG, format!("\"{}\"", image.digest))
        .header("docker-content-digest", image.digest.to_string())
}

async fn put(
    call: &Call,
    body: Body,
    name: &RepositoryName,
    reference: &Reference,
) -> Result<Response, ApiError> {
    let bytes = read_body(body).await?;
    let (tag, expected) = match reference {
        Reference::Tag(tag) => (Some(tag), None),
        Reference::Digest(digest) => (None, Some(*digest)),
    };
    let content_type = call.header(header::CONTENT_TYPE);
    let (manifest, pushed) =
        call.registry.push_manifest(&call.namespace, name, bytes, content_type, tag, expected).await?;
    let digest = pushed.image.digest;
    let mut response = empty(StatusCode::CREATED)
        .header(header::LOCATION, format!("/v2/{name}/manifests/{digest}"))
        .header("docker-content-digest", digest.to_string());
    if let Some(subject) = &manifest.subject {
        // Tells the client that the referrers API knows it now.
        response = response.header("oci-subject", subject.digest.to_string());
    }
    finish(response, Body::empty())
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let limited = Limited::new(body, MAX_MANIFEST_BYTES);
    match tokio::time::timeout(BODY_TIME, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(RegistryError::ManifestTooLarge(MAX_MANIFEST_BYTES).into())
        }
        Ok(Err(_)) | Err(_) => Err(ApiError::new(Code::ManifestInvalid, RegistryError::BodyInterrupted)),
    }
}
