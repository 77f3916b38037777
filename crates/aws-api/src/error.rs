//! AWS's errors.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// Who is to blame, as the Query protocol's `<Type>` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller: repeating the request as it is will not help.
    Sender,
    /// The service.
    Receiver,
}

/// An error as AWS's APIs report it: a code that programs read and a message that people read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Error {
    /// The error code, such as `ClusterNotFoundException`.
    pub code: String,
    /// The text, in AWS's words where AWS has some.
    pub message: String,
    /// The HTTP status.
    pub http_status: u16,
    /// Who is to blame; follows the status unless set.
    pub fault: Fault,
    /// The error shape's further members.
    pub fields: BTreeMap<String, Value>,
}

impl Error {
    /// An error whose fault follows from its status: 4xx is the sender's.
    pub fn new(code: impl Into<String>, http_status: u16, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            http_status,
            fault: if http_status < 500 { Fault::Sender } else { Fault::Receiver },
            fields: BTreeMap::new(),
        }
    }

    /// Adds a further member of the error shape.
    pub fn with_field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// Errors that every service has
/// (<https://docs.aws.amazon.com/AmazonECS/latest/APIReference/CommonErrors.html>), with the codes
/// and statuses of the JSON protocols. [`Protocol::encode_error`](crate::Protocol) translates those
/// that the Query protocol names differently.
pub mod common {
    use super::Error;

    /// The access key is not known, or its session token is wrong.
    pub fn unrecognized_client() -> Error {
        let message = "The security token included in the request is invalid.";
        Error::new("UnrecognizedClientException", 400, message)
    }

    /// The signature does not verify; `message` says which part does not.
    pub fn invalid_signature(message: impl Into<String>) -> Error {
        Error::new("InvalidSignatureException", 400, message)
    }

    /// The request carries no signature.
    pub fn missing_authentication_token() -> Error {
        Error::new("MissingAuthenticationTokenException", 400, "Missing Authentication Token")
    }

    /// The `Authorization` header or the query lacks a part.
    pub fn incomplete_signature(message: impl Into<String>) -> Error {
        Error::new("IncompleteSignatureException", 400, message)
    }

    /// The session token is past its end.
    pub fn expired_token() -> Error {
        let message = "The security token included in the request is expired";
        Error::new("ExpiredTokenException", 400, message)
    }

    /// The caller may not do this.
    pub fn access_denied(message: impl Into<String>) -> Error {
        Error::new("AccessDeniedException", 400, message)
    }

    /// The body is not what the protocol writes.
    pub fn serialization(message: impl Into<String>) -> Error {
        Error::new("SerializationException", 400, message)
    }

    /// AWS has no operation of that name, or the request names none.
    pub fn unknown_operation(name: &str) -> Error {
        let message = if name.is_empty() {
            "The request names no operation.".to_owned()
        } else {
            format!("Could not find operation {name}")
        };
        Error::new("UnknownOperationException", 400, message)
    }

    /// The operation exists at AWS and is not served here. The protocols have one error for both.
    pub fn unsupported_operation(service: crate::Service, operation: &str) -> Error {
        let name = service.info().name;
        let message = format!(
            "Coracle does not serve {name}:{operation} yet; `coracle api-coverage` lists what it \
             serves."
        );
        Error::new("UnknownOperationException", 400, message)
    }

    /// Something broke inside; `message` must not tell more than the caller may know.
    pub fn internal_failure(message: impl Into<String>) -> Error {
        Error::new("InternalFailure", 500, message)
    }

    /// Try again later.
    pub fn service_unavailable(message: impl Into<String>) -> Error {
        Error::new("ServiceUnavailableException", 503, message)
    }

    /// Too many requests; the SDKs back off and repeat.
    pub fn throttling() -> Error {
        Error::new("ThrottlingException", 400, "Rate exceeded")
    }

    /// The body is larger than is read.
    pub fn request_entity_too_large(limit: usize) -> Error {
        let message = format!("The request body must be at most {limit} bytes.");
        Error::new("RequestEntityTooLargeException", 413, message)
    }
}
