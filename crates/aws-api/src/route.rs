//! From a raw request to a service's operation.

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, header};
use serde::Serialize;

use crate::error::common;
use crate::query::Parameters;
use crate::{Error, Operation, OperationInfo, Protocol, Service, sigv4, validate};

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The service.
    pub service: Service,
    /// The operation, which may be one that is not served.
    pub operation: &'static OperationInfo,
    /// The protocol of the request and of its answer.
    pub protocol: Protocol,
    /// The Query protocol's parameters.
    parameters: Option<Parameters>,
}

/// Finds the service, operation and protocol of a request.
///
/// The JSON protocols name service and operation in `X-Amz-Target`. A Query request names its
/// operation in a parameter, and its service by the signature's scope or the host name.
///
/// # Errors
/// UnknownOperationException if nothing that AWS has is named; RequestEntityTooLargeException.
/// Use [`Protocol::of`] to encode them.
pub fn route(parts: &Parts, body: &Bytes) -> Result<Routed, Error> {
    match Protocol::of(parts) {
        Protocol::Query => route_query(parts, body),
        protocol => route_json(parts, body, protocol),
    }
}

fn route_json(parts: &Parts, body: &Bytes, protocol: Protocol) -> Result<Routed, Error> {
    let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let unknown = || common::unknown_operation(target.unwrap_or_default());
    let (prefix, name) = target.and_then(|target| target.rsplit_once('.')).ok_or_else(unknown)?;
    let service = Service::ALL
        .iter()
        .find(|service| service.info().target_prefix == Some(prefix))
        .copied()
        .filter(|_| parts.method == Method::POST)
        .ok_or_else(unknown)?;
    let operation = service.operation(name).ok_or_else(unknown)?;
    limit(service, body)?;
    Ok(Routed { service, operation, protocol, parameters: None })
}

fn route_query(parts: &Parts, body: &Bytes) -> Result<Routed, Error> {
    let unknown = || common::unknown_operation("");
    let service = service_of(parts).ok_or_else(unknown)?;
    if service.info().protocol != Protocol::Query {
        return Err(unknown());
    }
    limit(service, body)?;
    let form = match parts.method {
        Method::GET => &[],
        _ => body.as_ref(),
    };
    let parameters = Parameters::parse(parts.uri.query(), form)?;
    let action = parameters.get("Action").ok_or_else(unknown)?;
    let version = parameters.get("Version").unwrap_or(service.info().api_version);
    let operation = service
        .operation(action)
        .filter(|_| version == service.info().api_version)
        .ok_or_else(|| common::unknown_operation(&format!("{action} for version {version}")))?;
    Ok(Routed { service, operation, protocol: Protocol::Query, parameters: Some(parameters) })
}

fn limit(service: Service, body: &Bytes) -> Result<(), Error> {
    let limit = service.info().max_body;
    if body.len() > limit { Err(common::request_entity_too_large(limit)) } else { Ok(()) }
}

/// The service that a request's signature is for, else the one that its host name begins with.
fn service_of(parts: &Parts) -> Option<Service> {
    if let Some(name) = sigv4::scoped_service(parts) {
        return Service::ALL.iter().find(|service| service.info().signing_name == name).copied();
    }
    let host = parts.headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let host = host.or_else(|| parts.uri.authority().map(|authority| authority.as_str()))?;
    Service::ALL
        .iter()
        .find(|service| {
            let prefix = service.info().endpoint_prefix;
            host.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
        })
        .copied()
}

impl Routed {
    /// Refuses an operation that AWS has and Coracle does not serve.
    pub fn require_served(&self) -> Result<(), Error> {
        if self.operation.served() {
            return Ok(());
        }
        Err(common::unsupported_operation(self.service, self.operation.name))
    }

    /// Refuses a body in a content coding. SDKs compress only what an operation's model says may be
    /// (`requestCompression`, such as CloudWatch's PutMetricData), which is nothing that is served.
    ///
    /// # Errors
    /// SerializationException, which names the coding.
    pub fn require_plain_body(&self, parts: &Parts) -> Result<(), Error> {
        let codings = parts.headers.get_all(header::CONTENT_ENCODING).iter();
        let codings = codings.flat_map(|value| value.to_str().unwrap_or("?").split(','));
        // The signature has taken `aws-chunked` away.
        let plain = ["", "identity", "aws-chunked"];
        match codings
            .map(str::trim)
            .find(|coding| !plain.iter().any(|name| name.eq_ignore_ascii_case(coding)))
        {
            None => Ok(()),
            Some(coding) => Err(common::serialization(format!(
                "{}:{} takes no body with Content-Encoding '{coding}': send it uncompressed.",
                self.service.info().name,
                self.operation.name
            ))),
        }
    }

    /// Validates and parses the body of a request for `O`. After signature verification, `body` is
    /// that of [`sigv4::Verified`].
    ///
    /// # Errors
    /// SerializationException, or the service's validation error.
    pub fn decode<O: Operation>(&self, body: &[u8]) -> Result<O::Input, Error> {
        if O::SERVICE != self.service || O::NAME != self.operation.name {
            return Err(common::internal_failure("The request went to another operation."));
        }
        let rules = &self.service.info().validation;
        let value = match &self.parameters {
            Some(parameters) => {
                let value = parameters.value(O::INPUT_SCHEMA);
                validate::parse_value(rules, O::INPUT_SCHEMA, value)?
            }
            None => validate::parse(rules, O::INPUT_SCHEMA, body)?,
        };
        // The value fits the schema, and the type is generated from the same shape.
        serde_json::from_value(value)
            .map_err(|error| common::serialization(format!("The request is not valid: {error}")))
    }

    /// The answer to a success.
    pub fn encode_ok(&self, output: &impl Serialize, request_id: &str) -> Response<Bytes> {
        self.protocol.encode_ok(self.service, self.operation.name, output, request_id)
    }

    /// The answer to an error.
    pub fn encode_error(&self, error: &Error, request_id: &str) -> Response<Bytes> {
        self.protocol.encode_error(error, request_id)
    }
}
