//! Lists: repositories, tags, referrers; all in pages, each naming the next in a Link header.

use axum::body::Body;
use axum::response::Response;
use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use super::super::error::RegistryError;
use super::super::manifest::{self, OCI_INDEX};
use super::super::name::{Digest, Reference, RepositoryName};
use super::error::{ApiError, Code, only};
use super::{Call, finish};

/// The most entries of a page, and how many there are when the client does not say.
const PAGE: usize = 1_000;

/// The most referrers of a page: each is read from its manifest.
const REFERRERS_PAGE: usize = 100;

/// `GET /v2/_catalog`: the repositories of the caller's account and region.
pub async fn catalog(call: Call) -> Result<Response, ApiError> {
    only(&call.method, &[Method::GET])?;
    let count = page_size(&call)?;
    let after = match call.query("last") {
        // Need not exist, but has to be a name to be one of the keys.
        Some(last) => Some(last.parse().map_err(|error| ApiError::new(Code::NameInvalid, error))?),
        None => None,
    };
    if count == 0 {
        return respond("application/json", json!({"repositories": []}), None);
    }
    let (found, more) = call.registry.repositories(&call.namespace, after.as_ref(), count).await?;
    let names: Vec<&str> = found.iter().map(|record| record.name.as_str()).collect();
    let next = names.last().filter(|_| more).map(|last| format!("/v2/_catalog?n={count}&last={last}"));
    respond("application/json", json!({"repositories": names}), next)
}

/// `GET /v2/<name>/tags/list`: the repository's tags in byte order.
pub async fn tags(call: Call, name: RepositoryName) -> Result<Response, ApiError> {
    only(&call.method, &[Method::GET])?;
    let count = page_size(&call)?;
    let (registry, namespace) = (&call.registry, &call.namespace);
    registry.repository(namespace, &name).await?;
    if count == 0 {
        return respond("application/json", json!({"name": name, "tags": []}), None);
    }
    let after = call.query("last").filter(|last| last.len() <= 128);
    let (tags, more) = registry.tags(namespace, &name, after, count).await?;
    let next = tags.last().filter(|_| more).map(|last| format!("/v2/{name}/tags/list?n={count}&last={last}"));
    respond("application/json", json!({"name": name, "tags": tags}), next)
}

fn page_size(call: &Call) -> Result<usize, ApiError> {
    match call.query("n") {
        None => Ok(PAGE),
        Some(text) => match text.parse::<usize>() {
            Ok(count) => Ok(count.min(PAGE)),
            Err(_) => Err(ApiError::new(Code::Unsupported, "n is a number of entries")),
        },
    }
}

/// `GET /v2/<name>/referrers/<digest>`: an index of the manifests whose subject is that digest, also if
/// there is none or no such subject (distribution spec, "Listing Referrers").
pub async fn referrers(call: Call, name: RepositoryName, subject: Digest) -> Result<Response, ApiError> {
    only(&call.method, &[Method::GET])?;
    let wanted = call.query("artifactType");
    let after = match call.query("last") {
        Some(last) => Some(last.parse().map_err(|error| ApiError::new(Code::DigestInvalid, error))?),
        None => None,
    };
    let (registry, namespace) = (&call.registry, &call.namespace);
    let (digests, more) =
        registry.referrers(namespace, &name, &subject, after.as_ref(), REFERRERS_PAGE).await?;
    let mut descriptors = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    let mut cut = more;
    for digest in digests {
        // A page is as long as a manifest may be; annotations can be long.
        if bytes > manifest::MAX_MANIFEST_BYTES {
            cut = true;
            break;
        }
        last = Some(digest);
        let image = match registry.image(namespace, &name, &Reference::Digest(digest)).await {
            Ok(image) => image,
            // Deleted since it was listed.
            Err(RegistryError::ImageNotFound { .. } | RegistryError::RepositoryNotFound(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        if wanted.is_some_and(|wanted| image.artifact_type.as_deref() != Some(wanted)) {
            continue;
        }
        let content = registry.manifest_bytes(&image).await?;
        bytes += content.len();
        let annotations = manifest::parse(&content, Some(&image.media_type))?.annotations;
        let mut descriptor = json!({
            "mediaType": image.media_type, "size": image.manifest_bytes, "digest": digest,
        });
        if let Some(artifact_type) = image.artifact_type {
            descriptor["artifactType"] = artifact_type.into();
        }
        if !annotations.is_empty() {
            descriptor["annotations"] = json!(annotations);
        }
        descriptors.push(descriptor);
    }
    let next = last.filter(|_| cut).map(|last| {
        let filter = wanted.map(|wanted| {
            let encoded = serde_urlencoded::to_string([("artifactType", wanted)]).unwrap_or_default();
            format!("&{encoded}")
        });
        format!("/v2/{name}/referrers/{subject}?last={last}{}", filter.unwrap_or_default())
    });
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors});
    let mut response = respond(OCI_INDEX, index, next)?;
    if wanted.is_some() {
        response
            .headers_mut()
            .insert("oci-filters-applied", header::HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

fn respond(content_type: &str, body: Value, next: Option<String>) -> Result<Response, ApiError> {
    let mut response = Response::builder().status(StatusCode::OK).header(header::CONTENT_TYPE, content_type);
    if let Some(next) = next {
        response = response.header(header::LINK, format!("<{next}>; rel=\"next\""));
    }
    finish(response, Body::from(body.to_string()))
}
