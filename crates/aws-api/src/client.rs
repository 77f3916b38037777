//! The client's side of the JSON protocols, without I/O: what to send, and what was answered.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::Value;

use crate::sigv4::{self, Credentials};
use crate::{Error, Operation, Protocol, Timestamp};

/// Why a request cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The input does not serialize.
    #[error("cannot write the input of the request")]
    Input(#[from] serde_json::Error),
    /// The endpoint or a credential does not fit into HTTP.
    #[error("cannot write the head of the request")]
    Head(#[from] http::Error),
}

/// A signed request for `O`.
pub fn request<O: Operation>(
    endpoint: &Uri,
    credentials: &Credentials,
    region: &str,
    input: &O::Input,
    time: Timestamp,
) -> Result<Request<Bytes>, RequestError> {
    let service = const { json_service::<O>() };
    let mut parts = endpoint.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let uri = Uri::from_parts(parts).map_err(http::Error::from)?;
    let target = format!("{}.{}", service.target_prefix.unwrap_or_default(), O::NAME);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(CONTENT_TYPE, HeaderValue::from_static(service.protocol.content_type()))
        .header("x-amz-target", target)
        .body(Bytes::from(serde_json::to_vec(input)?))?;
    sigv4::sign(&mut request, credentials, region, service.signing_name, time)?;
    Ok(request)
}

/// The output of `O`, or the error that was answered.
pub fn parse<O: Operation>(status: StatusCode, body: &[u8]) -> Result<O::Output, Error> {
    let _ = const { json_service::<O>() };
    if !status.is_success() {
        return Err(parse_error(status, body));
    }
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("The answer to {} cannot be read: {error}", O::NAME);
        Error::new("SerializationException", 500, message)
    })
}

/// The service of `O`, which must speak JSON.
const fn json_service<O: Operation>() -> &'static crate::ServiceInfo {
    let info = O::SERVICE.info();
    assert!(
        matches!(info.protocol, Protocol::Json10 | Protocol::Json11),
        "the client speaks the JSON protocols only"
    );
    info
}

/// The error in an answer's body; one of its status alone if the body is none of ours.
pub fn parse_error(status: StatusCode, body: &[u8]) -> Error {
    let mut fields: BTreeMap<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    // `com.amazon.coral.service#SerializationException` in some services.
    let code = take("__type").or_else(|| take("code"));
    let code = code.as_deref().map(|code| code.rsplit('#').next().unwrap_or(code));
    let message = take("message").or_else(|| take("Message")).unwrap_or_default();
    let status_text = status.canonical_reason().unwrap_or("unknown status").replace(' ', "");
    let mut error = Error::new(code.unwrap_or(&status_text), status.as_u16(), message);
    error.fields = fields;
    error
}
