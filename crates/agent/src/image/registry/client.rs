//! Requests to one registry: with its authentication, its redirects, and bounds on what it answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::Secret;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::{Challenge, TokenAnswer, TokenKey, Tokens, challenge};
use super::net::Clients;
use super::{Auth, RegistryEndpoint};
use crate::image::digest::Digest;
use crate::image::disk::OpenError;
use crate::image::error::{PullErrorKind, printable};
use crate::image::manifest::{self, MANIFEST_MAX};
use crate::image::reference::{DEFAULT_HOST, Reference};

const REDIRECTS_MAX: usize = 5;
/// The longest token answer and error document that are read, in bytes.
const ANSWER_MAX: u64 = 256 << 10;
/// The longest wait that a registry may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// Why a request gave nothing.
#[derive(Clone, Debug)]
pub(crate) enum RequestError {
    /// 404, or the registry's own word for it.
    NotFound,
    /// Worth another try: no answer, a server error, too many requests.
    Transient { what: String, retry_after: Option<Duration> },
    /// Not worth one.
    Final(PullErrorKind),
}

impl RequestError {
    fn transient(what: impl Into<String>) -> Self {
        Self::Transient { what: what.into(), retry_after: None }
    }
}

/// Speaks to all registries.
pub(crate) struct Registry {
    clients: Clients,
    tokens: Tokens,
}

/// One repository of one registry, and who asks.
#[derive(Clone)]
pub(crate) struct Remote(Arc<RemoteInner>);

struct RemoteInner {
    base: Url,
    repository: String,
    auth: Auth,
    key: TokenKey,
    /// The address comes from the host's own configuration: credentials are sent without being asked for.
    configured: bool,
}

impl Remote {
    /// Scheme, host and port.
    pub(crate) fn base(&self) -> &str {
        self.0.base.as_str()
    }

    /// What tells it from others.
    pub(crate) fn key(&self) -> &TokenKey {
        &self.0.key
    }
}

/// A manifest as the registry gave it.
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
    /// Of `bytes`; equal to what the registry's `Docker-Content-Digest` says, if it says anything.
    pub(crate) digest: Digest,
}

/// A blob on its way.
pub(crate) struct Blob {
    response: Response,
    /// Bytes still to leave out: the registry began at 0 though asked for a later start.
    skip: u64,
}

impl Blob {
    /// The next bytes; `None` at the end of the response, which may come before the end of the blob.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RequestError> {
        loop {
            let chunk = self.response.chunk().await.map_err(|e| transport(&e))?;
            let Some(mut chunk) = chunk else { return Ok(None) };
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            let rest = chunk.split_off(skipped as usize);
            if !rest.is_empty() {
                return Ok(Some(rest));
            }
        }
    }
}

impl Registry {
    pub(crate) fn new(insecure: Vec<String>, ca_certificates: &[Vec<u8>]) -> Result<Self, OpenError> {
        Ok(Self { clients: Clients::new(insecure, ca_certificates)?, tokens: Tokens::default() })
    }

    /// The repository that `reference` is in.
    pub(crate) fn remote(
        &self,
        reference: &Reference,
        endpoint: Option<&RegistryEndpoint>,
        auth: &Auth,
    ) -> Result<Remote, PullErrorKind> {
        let (base, repository) = match endpoint {
            Some(RegistryEndpoint { base_url, repository_prefix }) => {
                let prefix = repository_prefix.trim_matches('/');
                let repository = reference.repository();
                let path =
                    if prefix.is_empty() { repository.to_owned() } else { format!("{prefix}/{repository}") };
                (base_url.clone(), path)
            }
            None => {
                // Docker Hub's registry has a name of its own.
                let host =
                    if reference.host() == DEFAULT_HOST { "registry-1.docker.io" } else { reference.host() };
                (format!("{}://{host}", self.clients.scheme(host)), reference.repository().to_owned())
            }
        };
        let base = Url::parse(&base).ok().filter(Url::has_host).ok_or_else(|| {
            PullErrorKind::InvalidReference(format!("invalid registry address {}", printable(&base)))
        })?;
        let key = TokenKey::new(base.as_str(), &repository, auth);
        Ok(Remote(Arc::new(RemoteInner {
            base,
            repository,
            auth: auth.clone(),
            key,
            configured: endpoint.is_some(),
        })))
    }

    /// The digest of what `target` (a tag or a digest) names, without its content; `None` when the registry does not say.
    pub(crate) async fn head_manifest(
        &self,
        remote: &Remote,
        target: &str,
    ) -> Result<Option<Digest>, RequestError> {
        let response = self.request(remote, Method::HEAD, &format!("manifests/{target}"), 0).await?;
        Ok(content_digest(&response))
    }

    /// The manifest that `target` (a tag or a digest) names.
    pub(crate) async fn manifest(
        &self,
        remote: &Remote,
        target: &str,
    ) -> Result<FetchedManifest, RequestError> {
        let response = self.request(remote, Method::GET, &format!("manifests/{target}"), 0).await?;
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let said = content_digest(&response);
        let bytes = bounded(response, MANIFEST_MAX, "manifest").await?;
        let digest = Digest::of(&bytes);
        let mismatch = |expected| {
            let what = "manifest".to_owned();
            RequestError::Final(PullErrorKind::DigestMismatch { what, expected, actual: digest })
        };
        match said {
            Some(expected) if expected != digest => Err(mismatch(expected)),
            _ => match target.parse() {
                Ok(expected) if expected != digest => Err(mismatch(expected)),
                _ => Ok(FetchedManifest { bytes, content_type, digest }),
            },
        }
    }

    /// A blob, from byte `offset` on. The caller verifies what it gets.
    pub(crate) async fn blob(
        &self,
        remote: &Remote,
        digest: Digest,
        offset: u64,
    ) -> Result<Blob, RequestError> {
        let response = self.request(remote, Method::GET, &format!("blobs/{digest}"), offset).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if offset > 0 => {
                // Another start than asked for would only show as a wrong digest.
                let range =
                    response.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
                if !range.starts_with(&format!("bytes {offset}-")) {
                    return Err(RequestError::transient(
                        "registry answered with another range than asked for",
                    ));
                }
                Ok(Blob { response, skip: 0 })
            }
            _ => Ok(Blob { response, skip: offset }),
        }
    }

    /// Sends a request to the repository, answering a challenge if there is one.
    async fn request(
        &self,
        remote: &Remote,
        method: Method,
        path: &str,
        offset: u64,
    ) -> Result<Response, RequestError> {
        let RemoteInner { base, repository, auth, key, configured } = &*remote.0;
        let url = base
            .join(&format!("/v2/{repository}/{path}"))
            .map_err(|_| RequestError::Final(PullErrorKind::InvalidReference(repository.clone())))?;
        let known = self.tokens.get(key).or_else(|| if *configured { auth.basic() } else { None });
        let response = self.follow(remote, &method, url.clone(), offset, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accept(response, &method).await;
        }
        self.tokens.forget(key);
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let Some(asked) = challenge(headers) else { return accept(response, &method).await };
        // The body is not needed; reading it lets the connection be used again.
        let refusal = error_text(response).await;
        let Some(header) = self.authorize(remote, &asked).await? else {
            return Err(RequestError::Final(PullErrorKind::Unauthorized(refusal)));
        };
        let response = self.follow(remote, &method, url, offset, Some(&header)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.tokens.forget(key);
        }
        accept(response, &method).await
    }

    /// Sends a request and follows redirects. `authorization` goes to the registry's own origin only.
    async fn follow(
        &self,
        remote: &Remote,
        method: &Method,
        mut url: Url,
        offset: u64,
        authorization: Option<&Secret>,
    ) -> Result<Response, RequestError> {
        let base = &remote.0.base;
        for _ in 0..=REDIRECTS_MAX {
            let client = self.route(base, &url)?;
            let mut request = client.request(method.clone(), url.clone()).header(ACCEPT, manifest::ACCEPT);
            if let Some(header) = authorization.filter(|_| url.origin() == base.origin()) {
                request = request.header(AUTHORIZATION, sensitive(header)?);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let response = request.send().await.map_err(|e| failed_to_do(method, &url, &e))?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
            url = location.and_then(|location| response.url().join(location).ok()).ok_or_else(|| {
                RequestError::Final(PullErrorKind::Malformed("registry redirects to nowhere".to_owned()))
            })?;
        }
        Err(RequestError::Final(PullErrorKind::Malformed(format!(
            "registry redirects more than {REDIRECTS_MAX} times"
        ))))
    }

    fn route(&self, base: &Url, url: &Url) -> Result<&reqwest::Client, RequestError> {
        self.clients.route(base, url).map_err(|why| {
            let host = printable(url.host_str().unwrap_or_default());
            RequestError::Final(PullErrorKind::Unsupported(format!(
                "refused to go to {}://{host}: {why}",
                url.scheme()
            )))
        })
    }

    /// The `Authorization` header that a challenge asks for; `None` when there is nothing to answer with.
    async fn authorize(&self, remote: &Remote, asked: &Challenge) -> Result<Option<Secret>, RequestError> {
        let RemoteInner { base, repository, auth, key, .. } = &*remote.0;
        let (realm, service, scope) = match asked {
            Challenge::Basic => {
                let header = auth.basic();
                if let Some(header) = &header {
                    self.tokens.put(key.clone(), header.clone(), None);
                }
                return Ok(header);
            }
            Challenge::Bearer { realm, service, scope } => (realm, service, scope),
        };
        let mut url = base.join(realm).map_err(|_| {
            RequestError::Final(PullErrorKind::Malformed(format!("invalid token realm {}", printable(realm))))
        })?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            let own = format!("repository:{repository}:pull");
            query.append_pair("scope", scope.as_deref().unwrap_or(&own));
        }
        let client = self.route(base, &url)?;
        let mut request = client.get(url.clone());
        if let Some(header) = auth.basic() {
            request = request.header(AUTHORIZATION, sensitive(&header)?);
        }
        let response =
            request.send().await.map_err(|e| failed_to_do(&Method::GET, &without_query(&url), &e))?;
        match response.status() {
            status if status.is_success() => {
                let bytes = bounded(response, ANSWER_MAX, "token answer").await?;
                let answer = serde_json::from_slice::<TokenAnswer>(&bytes).ok().and_then(TokenAnswer::header);
                let Some((header, lifetime)) = answer else {
                    let host = printable(url.host_str().unwrap_or_default());
                    return Err(RequestError::Final(PullErrorKind::Malformed(format!(
                        "no usable token from {host}"
                    ))));
                };
                self.tokens.put(key.clone(), header.clone(), Some(lifetime));
                Ok(Some(header))
            }
            status if is_transient(status) => Err(server_error(response).await),
            // Redirects are not followed: credentials may be on this request.
            _ => Err(RequestError::Final(PullErrorKind::Unauthorized(error_text(response).await))),
        }
    }
}

fn sensitive(secret: &Secret) -> Result<reqwest::header::HeaderValue, RequestError> {
    let mut value = reqwest::header::HeaderValue::from_str(secret.expose()).map_err(|_| {
        RequestError::Final(PullErrorKind::Unauthorized("credentials have invalid characters".to_owned()))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn content_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// Turns any answer but a success into an error.
async fn accept(response: Response, method: &Method) -> Result<Response, RequestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if is_transient(status) {
        return Err(server_error(response).await);
    }
    match status {
        StatusCode::NOT_FOUND => Err(RequestError::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(RequestError::Final(PullErrorKind::Unauthorized(error_text(response).await)))
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(RequestError::Final(PullErrorKind::Truncated("blob".to_owned())))
        }
        _ => {
            let url = without_query(response.url());
            let what = format!("unexpected status from {method} request to {url}: {status}");
            Err(RequestError::Final(PullErrorKind::Unsupported(printable(&what))))
        }
    }
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// As containerd words it: what users search for when Docker Hub's pull limit is reached.
async fn server_error(response: Response) -> RequestError {
    let seconds =
        response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|t| t.parse().ok());
    let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    let (url, status) = (without_query(response.url()), response.status());
    let said = error_text(response).await;
    let server =
        if said == status.to_string() { String::new() } else { format!(" - Server message: {said}") };
    let what = printable(&format!("unexpected status code {url}: {status}{server}"));
    RequestError::Transient { what: format!("httpReadSeeker: failed open: {what}"), retry_after }
}

/// The registry's own words in an error document (distribution spec, "Error codes"), else the status.
async fn error_text(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<ErrorDocument>,
    }
    #[derive(serde::Deserialize)]
    struct ErrorDocument {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let bytes = bounded(response, ANSWER_MAX, "error document").await.unwrap_or_default();
    match serde_json::from_slice::<Errors>(&bytes).ok().and_then(|e| e.errors.into_iter().next()) {
        Some(ErrorDocument { code, message }) => printable(&format!("{}: {message}", code.to_lowercase())),
        None => status.to_string(),
    }
}

async fn bounded(mut response: Response, max: u64, what: &str) -> Result<Vec<u8>, RequestError> {
    let too_large = || {
        RequestError::Final(PullErrorKind::TooLarge { what: what.to_owned(), limit: format!("{max} bytes") })
    };
    if response.content_length().is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| transport(&e))? {
        if bytes.len() as u64 + chunk.len() as u64 > max {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// URLs of blob stores have signatures in their queries, which belong in no message.
fn without_query(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// As Go's net/http words it, since users search for these texts.
fn failed_to_do(method: &Method, url: &Url, error: &reqwest::Error) -> RequestError {
    let verb = if *method == Method::HEAD { "Head" } else { "Get" };
    RequestError::transient(format!(
        "failed to do request: {verb} \"{}\": {}",
        without_query(url),
        cause(error)
    ))
}

fn transport(error: &reqwest::Error) -> RequestError {
    RequestError::transient(format!("failed to read from registry: {}", cause(error)))
}

/// The innermost reason: the layers above it only say that a request failed.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "i/o timeout".to_owned();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => "connect: connection refused".to_owned(),
        Some(std::io::ErrorKind::ConnectionReset) => "read: connection reset by peer".to_owned(),
        Some(std::io::ErrorKind::HostUnreachable) => "connect: no route to host".to_owned(),
        Some(std::io::ErrorKind::NetworkUnreachable) => "connect: network is unreachable".to_owned(),
        Some(std::io::ErrorKind::TimedOut) => "i/o timeout".to_owned(),
        _ => printable(&innermost.to_string()),
    }
}
