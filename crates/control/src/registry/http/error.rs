//! Errors as the distribution API reports them: `{"errors":[{"code","message","detail"}]}`.

use std::fmt::Display;

use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde_json::json;

use super::super::error::RegistryError;
use super::super::token::TokenError;

/// The error codes (OCI distribution spec 1.1, "Error Codes"; the last three are of Docker's registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    TagInvalid,
    /// No such path; the specification has no code of its own for it.
    NotFound,
    Unknown,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported | Code::NotFound => "UNSUPPORTED",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::TagInvalid => "TAG_INVALID",
            Code::Unknown => "UNKNOWN",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Code::BlobUnknown
            | Code::BlobUploadUnknown
            | Code::ManifestUnknown
            | Code::NameUnknown
            | Code::NotFound => StatusCode::NOT_FOUND,
            Code::BlobUploadInvalid
            | Code::DigestInvalid
            | Code::ManifestBlobUnknown
            | Code::ManifestInvalid
            | Code::NameInvalid
            | Code::SizeInvalid
            | Code::Unsupported
            | Code::TagInvalid => StatusCode::BAD_REQUEST,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Denied => StatusCode::FORBIDDEN,
            Code::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A refused or failed request.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    status: StatusCode,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// An error with the code's usual status.
    pub fn new(code: Code, message: impl Display) -> Self {
        Self { code, status: code.status(), message: message.to_string(), headers: Vec::new() }
    }

    /// The path does not serve the method.
    pub fn method() -> Self {
        Self::new(Code::Unsupported, "the method is not supported here")
            .with_status(StatusCode::METHOD_NOT_ALLOWED)
    }

    /// The same with another status.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same with a further header, left out if its value cannot be one.
    pub fn with_header(mut self, name: HeaderName, value: impl Display) -> Self {
        if let Ok(value) = HeaderValue::try_from(value.to_string()) {
            self.headers.push((name, value));
        }
        self
    }

    /// Its code.
    #[cfg(test)]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The response; a 401 says how to authenticate.
    pub fn into_response(self, challenge: &HeaderValue) -> Response {
        let body = json!({"errors": [{"code": self.code.name(), "message": self.message}]});
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, challenge.clone());
        }
        headers.extend(self.headers);
        response
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        Self::new(Code::Unauthorized, error)
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let code = match &error {
            RegistryError::RepositoryNotFound(_) => Code::NameUnknown,
            RegistryError::ImageNotFound { .. } => Code::ManifestUnknown,
            RegistryError::TagImmutable { .. } | RegistryError::TooManyTags(_) => Code::TagInvalid,
            RegistryError::ImageReferenced(_)
            | RegistryError::TooManyResourceTags(_)
            | RegistryError::BlobReferenced(_)
            | RegistryError::RepositoryExists(_)
            | RegistryError::RepositoryNotEmpty(_) => Code::Denied,
            RegistryError::BlobUnknown(_) => Code::BlobUnknown,
            RegistryError::TooManyLists(_) | RegistryError::ManifestInvalid(_) => Code::ManifestInvalid,
            RegistryError::ManifestUnsupported(_) => Code::ManifestInvalid,
            RegistryError::LayersNotFound(_) | RegistryError::ReferencedImagesNotFound(_) => {
                Code::ManifestBlobUnknown
            }
            RegistryError::DigestMismatch { .. } => Code::DigestInvalid,
            RegistryError::UploadUnknown(_) => Code::BlobUploadUnknown,
            RegistryError::SizeMismatch { .. } => Code::SizeInvalid,
            RegistryError::UploadBusy(_)
            | RegistryError::OffsetMismatch { .. }
            | RegistryError::BodyInterrupted => Code::BlobUploadInvalid,
            RegistryError::TooManyUploads(_) | RegistryError::Contended => Code::TooManyRequests,
            RegistryError::ManifestTooLarge(_) | RegistryError::BlobTooLarge(_) => {
                return Self::new(Code::SizeInvalid, error).with_status(StatusCode::PAYLOAD_TOO_LARGE);
            }
            RegistryError::DiskFull => {
                return Self::new(Code::Unknown, error).with_status(StatusCode::INSUFFICIENT_STORAGE);
            }
            RegistryError::Files(source) => {
                tracing::error!(error = source as &dyn std::error::Error, "a registry file failed");
                Code::Unknown
            }
            RegistryError::Store(source) => {
                tracing::error!(error = source.as_ref() as &dyn std::error::Error, "the store failed");
                Code::Unknown
            }
        };
        Self::new(code, error)
    }
}

/// Refuses methods other than these.
pub fn only(method: &Method, allowed: &[Method]) -> Result<(), ApiError> {
    if allowed.contains(method) { Ok(()) } else { Err(ApiError::method()) }
}
