//! The wire protocols: what an answer looks like.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::Value;

use crate::{Error, Fault, Service, query};

/// Names the request in answers and logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// Repeats an error's code.
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// How an operation's messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// AWS JSON 1.0 (<https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html>).
    Json10,
    /// AWS JSON 1.1 (<https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html>).
    Json11,
    /// AWS Query (<https://smithy.io/2.0/aws/protocols/aws-query-protocol.html>): form parameters
    /// in, XML out.
    Query,
}

impl Protocol {
    /// The protocol that a request seems to speak, so that even one that cannot be routed gets an
    /// error that its client can read.
    pub fn of(parts: &Parts) -> Self {
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.unwrap_or_default();
        if kind.starts_with("application/x-amz-json-1.0") {
            Self::Json10
        } else if parts.headers.contains_key("x-amz-target") {
            Self::Json11
        } else if kind.starts_with("application/x-www-form-urlencoded")
            || query::names_action(parts.uri.query())
        {
            Self::Query
        } else {
            Self::Json11
        }
    }

    /// The `Content-Type` of its messages.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json10 => "application/x-amz-json-1.0",
            Self::Json11 => "application/x-amz-json-1.1",
            Self::Query => "text/xml",
        }
    }

    /// A success with `output` as its body. An output that does not serialize is an internal
    /// failure.
    pub fn encode_ok(
        self,
        service: Service,
        operation: &str,
        output: &impl Serialize,
        request_id: &str,
    ) -> Response<Bytes> {
        let body = match self {
            Self::Json10 | Self::Json11 => serde_json::to_vec(output),
            Self::Query => serde_json::to_value(output)
                .map(|output| query::response(service, operation, &output, request_id).into_bytes()),
        };
        match body {
            Ok(body) => self.respond(StatusCode::OK, body, request_id),
            Err(_) => {
                let error = crate::error::common::internal_failure("The answer cannot be written.");
                self.encode_error(&error, request_id)
            }
        }
    }

    /// An error in the protocol's own form, with the codes and statuses of its own that Query has.
    pub fn encode_error(self, error: &Error, request_id: &str) -> Response<Bytes> {
        let (code, status) = match self {
            Self::Json10 | Self::Json11 => (error.code.as_str(), error.http_status),
            Self::Query => query_code(error),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = match self {
            Self::Json10 | Self::Json11 => json_error(error),
            Self::Query => query::error(code, error, request_id).into_bytes(),
        };
        let mut response = self.respond(status, body, request_id);
        if let Ok(code) = HeaderValue::from_str(code) {
            response.headers_mut().insert(ERROR_TYPE, code);
        }
        response
    }

    fn respond(self, status: StatusCode, body: Vec<u8>, request_id: &str) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type()));
        if let Ok(request_id) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID, request_id);
        }
        response
    }
}

/// `{"__type": code, "message": …}` with the error shape's further members.
fn json_error(error: &Error) -> Vec<u8> {
    let mut body = serde_json::Map::new();
    body.insert("__type".to_owned(), Value::from(error.code.as_str()));
    if !error.message.is_empty() {
        body.insert("message".to_owned(), Value::from(error.message.as_str()));
    }
    body.extend(error.fields.clone());
    Value::Object(body).to_string().into_bytes()
}

/// The Query protocol's code and status for an error
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>).
fn query_code(error: &Error) -> (&str, u16) {
    match error.code.as_str() {
        "AccessDeniedException" => ("AccessDenied", 403),
        "ExpiredTokenException" if error.fault == Fault::Sender => ("ExpiredToken", 403),
        "IncompleteSignatureException" => ("IncompleteSignature", 400),
        "InvalidSignatureException" => ("SignatureDoesNotMatch", 403),
        "MissingAuthenticationTokenException" => ("MissingAuthenticationToken", 403),
        "SerializationException" => ("MalformedInput", 400),
        "ServiceUnavailableException" => ("ServiceUnavailable", 503),
        "ThrottlingException" => ("Throttling", 400),
        "UnknownOperationException" => ("InvalidAction", 400),
        "UnrecognizedClientException" => ("InvalidClientTokenId", 403),
        code => (code, error.http_status),
    }
}
