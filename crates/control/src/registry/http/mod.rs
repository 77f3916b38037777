//! The OCI distribution API, version 1.1 (<https://github.com/opencontainers/distribution-spec>).

mod blob;
mod error;
mod listing;
mod manifest;
mod route;
mod upload;

use std::collections::HashMap;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use super::name::{Namespace, RepositoryName};
use super::token::{self, Access, TokenError};
use super::{Claims, Registry};
use error::{ApiError, Code};
use route::Route;

/// The query parameter that carries the token of a download URL.
pub const TOKEN_PARAMETER: &str = "X-Coracle-Token";

/// A request that has been authenticated and authorised for its route.
struct Call {
    registry: Registry,
    namespace: Namespace,
    access: Access,
    method: Method,
    headers: HeaderMap,
    query: HashMap<String, String>,
}

impl Call {
    fn is(&self, method: Method) -> bool {
        self.method == method
    }

    /// GET or HEAD; a HEAD's body is dropped by the server.
    fn is_read(&self) -> bool {
        is_read(&self.method)
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the caller could push what it is asking for.
    fn may_push(&self) -> bool {
        self.access == Access::Registry
    }
}

fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

impl Registry {
    /// The distribution API as a router to be merged (not nested): it serves `/v2`, `/v2/` and all
    /// below. Every request needs a token; bodies may be as long as the registry's limits say, whatever
    /// the surrounding router's.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v2", any(serve))
            .route("/v2/", any(serve))
            .route("/v2/{*path}", any(serve))
            .with_state(self.clone())
    }
}

async fn serve(State(registry): State<Registry>, request: Request) -> Response {
    let challenge = challenge(&registry);
    let mut response = match dispatch(registry, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(&challenge),
    };
    response
        .headers_mut()
        .insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

fn challenge(registry: &Registry) -> HeaderValue {
    let text = format!("Basic realm=\"{}\",service=\"ecr.amazonaws.com\"", registry.endpoint());
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Basic realm=\"registry\""))
}

async fn dispatch(registry: Registry, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .map(|query| serde_urlencoded::from_str(query).unwrap_or_default())
        .unwrap_or_default();
    // Nobody learns anything, not even whether a name is valid, without a token.
    let claims = authenticate(&registry, &parts.headers, &query)?;
    let route = Route::parse(parts.uri.path())?;
    authorise(&claims, &route, &parts.method)?;
    let call = Call {
        registry,
        namespace: claims.namespace,
        access: claims.access,
        method: parts.method,
        headers: parts.headers,
        query,
    };
    match route {
        Route::Ping if call.is_read() => Ok(ping()),
        Route::Ping => Err(ApiError::method()),
        Route::Catalog => listing::catalog(call).await,
        Route::Tags(name) => listing::tags(call, name).await,
        Route::Referrers(name, subject) => listing::referrers(call, name, subject).await,
        Route::Manifest(name, reference) => manifest::serve(call, body, name, reference).await,
        Route::Blob(name, digest) => blob::serve(call, name, digest).await,
        Route::Uploads(name) => upload::begin(call, body, name).await,
        Route::Upload(name, id) => upload::serve(call, body, name, id).await,
    }
}

fn ping() -> Response {
    let mut response = Response::new(Body::from("{}"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Who calls: by the Basic header, or for a download by the token in the query.
fn authenticate(
    registry: &Registry,
    headers: &HeaderMap,
    query: &HashMap<String, String>,
) -> Result<Claims, ApiError> {
    let unauthorized = |message: &str| ApiError::new(Code::Unauthorized, message);
    let now = registry.now() / 1000;
    let verify = |token: &str| {
        registry.inner.token_key.verify(token, now).map_err(|error: TokenError| ApiError::from(error))
    };
    if let Some(header) = headers.get(header::AUTHORIZATION) {
        let password = header.to_str().ok().and_then(token::basic_password);
        let password = password.ok_or_else(|| unauthorized("log in as AWS with an authorization token"))?;
        return verify(&password);
    }
    match query.get(TOKEN_PARAMETER) {
        Some(token) => {
            let claims = verify(token)?;
            // URLs end up in logs: what is good for more than one blob is not taken from them.
            match claims.access {
                Access::Blob { .. } => Ok(claims),
                Access::Registry | Access::Pull { .. } => Err(unauthorized("log in")),
            }
        }
        None => Err(unauthorized("authentication is required")),
    }
}

/// Whether the token permits the request.
fn authorise(claims: &Claims, route: &Route, method: &Method) -> Result<(), ApiError> {
    let same = |granted: &RepositoryName, name: &RepositoryName| granted == name && is_read(method);
    let permitted = match (&claims.access, route) {
        (Access::Registry, _) => true,
        (Access::Pull { .. }, Route::Ping) => true,
        (
            Access::Pull { repository },
            Route::Tags(name) | Route::Referrers(name, _) | Route::Manifest(name, _) | Route::Blob(name, _),
        ) => same(repository, name),
        (Access::Pull { .. }, Route::Catalog | Route::Uploads(_) | Route::Upload(..)) => false,
        (Access::Blob { repository, digest }, Route::Blob(name, wanted)) => {
            same(repository, name) && digest == wanted
        }
        (Access::Blob { .. }, _) => false,
    };
    if permitted {
        Ok(())
    } else {
        Err(ApiError::new(Code::Denied, "the authorization token does not permit this"))
    }
}

/// A response without a body.
fn empty(status: StatusCode) -> http::response::Builder {
    Response::builder().status(status).header(header::CONTENT_LENGTH, 0)
}

/// Finishes a response whose headers are all names and digests that were checked.
fn finish(builder: http::response::Builder, body: Body) -> Result<Response, ApiError> {
    builder.body(body).map_err(|_| ApiError::new(Code::Unknown, "a header could not be written"))
}
