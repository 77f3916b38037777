//! A registry in this process, with tokens, redirects and faults at will.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent::image::Digest;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use super::builder::TestImage;

/// What the registry does wrong, or asks for. All can be changed while it runs.
#[derive(Default)]
pub struct Behaviour {
    /// Blob responses are cut after so many bytes, this often.
    pub cut_after: AtomicUsize,
    pub cuts: AtomicU32,
    /// `Range` is not understood.
    pub ignore_range: AtomicBool,
    /// Answer 503 to this many requests.
    pub unavailable: AtomicU32,
    /// Blobs are served only as permits come.
    pub hold_blobs: AtomicBool,
    /// `Authorization` that is asked for, with the challenge to send.
    pub required: Mutex<Option<(String, String)>>,
    /// Where blobs are redirected to.
    pub redirect_blobs: Mutex<Option<String>>,
    /// The body of token answers.
    pub token: Mutex<String>,
    /// A lie in `Docker-Content-Digest`.
    pub content_digest: Mutex<Option<String>>,
    /// All is answered with 429, in Docker Hub's words, and not to wait.
    pub throttle: AtomicBool,
    /// HEAD is answered with 405.
    pub no_head: AtomicBool,
}

struct Shared {
    behaviour: Behaviour,
    manifests: Mutex<HashMap<String, (Vec<u8>, String)>>,
    blobs: Mutex<HashMap<String, Bytes>>,
    log: Mutex<Vec<(String, String, HeaderMap)>>,
    permits: Semaphore,
}

pub struct Faulty {
    shared: Arc<Shared>,
    pub host: String,
    server: tokio::task::JoinHandle<()>,
}

impl Faulty {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub async fn start_at(address: &str) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            behaviour: Behaviour::default(),
            manifests: Mutex::default(),
            blobs: Mutex::default(),
            log: Mutex::default(),
            permits: Semaphore::new(0),
        });
        let app = Router::new().fallback(serve).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { shared, host, server }
    }

    pub fn behaviour(&self) -> &Behaviour {
        &self.shared.behaviour
    }

    /// Adds an image under `name:tag`, and gives its reference.
    pub fn add(&self, name: &str, tag: &str, image: &TestImage) -> String {
        for blob in &image.blobs {
            self.add_blob(blob);
        }
        self.add_manifest(name, tag, image.media_type, &image.manifest)
    }

    pub fn add_blob(&self, blob: &[u8]) {
        self.add_blob_as(&Digest::of(blob).to_string(), blob);
    }

    /// Content under a digest that may not be its own.
    pub fn add_blob_as(&self, digest: &str, blob: &[u8]) {
        self.shared.blobs.lock().unwrap().insert(digest.to_owned(), Bytes::copy_from_slice(blob));
    }

    pub fn remove_blob(&self, digest: &str) {
        self.shared.blobs.lock().unwrap().remove(digest);
    }

    pub fn add_manifest(&self, name: &str, tag: &str, media_type: &str, manifest: &[u8]) -> String {
        let entry = (manifest.to_vec(), media_type.to_owned());
        let mut manifests = self.shared.manifests.lock().unwrap();
        manifests.insert(format!("{name}/manifests/{}", Digest::of(manifest)), entry.clone());
        manifests.insert(format!("{name}/manifests/{tag}"), entry);
        format!("{}/{name}:{tag}", self.host)
    }

    /// Lets blobs that are held go.
    pub fn release_blobs(&self) {
        self.behaviour().hold_blobs.store(false, Ordering::SeqCst);
        self.shared.permits.add_permits(1000);
    }

    /// How many requests had this method and this text in their path.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.shared.log.lock().unwrap().iter().filter(|(m, p, _)| m == method && p.contains(path)).count()
    }

    /// Requests whose path holds `path`, each with its headers.
    pub fn requests(&self, path: &str) -> Vec<(String, HeaderMap)> {
        let log = self.shared.log.lock().unwrap();
        log.iter().filter(|(_, p, _)| p.contains(path)).map(|(_, p, h)| (p.clone(), h.clone())).collect()
    }

    pub fn clear_log(&self) {
        self.shared.log.lock().unwrap().clear();
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let path = uri.path().to_owned();
    let logged = uri.path_and_query().map_or(path.clone(), ToString::to_string);
    shared.log.lock().unwrap().push((method.to_string(), logged, headers.clone()));
    let behaviour = &shared.behaviour;
    let fails = behaviour.unavailable.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    if fails.is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if behaviour.throttle.load(Ordering::SeqCst) {
        let body =
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")], body).into_response();
    }
    if path == "/token" {
        return behaviour.token.lock().unwrap().clone().into_response();
    }
    if behaviour.no_head.load(Ordering::SeqCst) && method == Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    if let Some((required, challenge)) = behaviour.required.lock().unwrap().clone()
        && path.starts_with("/v2/")
        && headers.get(header::AUTHORIZATION).is_none_or(|v| v != required.as_str())
    {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], body).into_response();
    }
    let below = path.strip_prefix("/v2/").unwrap_or(&path);
    if let Some((bytes, media_type)) = shared.manifests.lock().unwrap().get(below).cloned() {
        let lie = behaviour.content_digest.lock().unwrap().clone();
        let digest = lie.unwrap_or_else(|| Digest::of(&bytes).to_string());
        let headers = [("content-type", media_type), ("docker-content-digest", digest)];
        return (headers, if method == Method::HEAD { Vec::new() } else { bytes }).into_response();
    }
    let Some((_, digest)) = path.rsplit_once("/blobs/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let Some(location) = behaviour.redirect_blobs.lock().unwrap().clone() {
        return (
            StatusCode::TEMPORARY_REDIRECT,
            [(header::LOCATION, format!("{location}/cdn/blobs/{digest}"))],
        )
            .into_response();
    }
    let Some(blob) = shared.blobs.lock().unwrap().get(digest).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if behaviour.hold_blobs.load(Ordering::SeqCst) && blob.first() != Some(&b'{') {
        let _permit = shared.permits.acquire().await.unwrap();
    }
    blob_response(behaviour, &headers, blob)
}

fn blob_response(behaviour: &Behaviour, headers: &HeaderMap, blob: Bytes) -> Response {
    let asked = headers
        .get(header::RANGE)
        .filter(|_| !behaviour.ignore_range.load(Ordering::SeqCst))
        .and_then(|v| v.to_str().unwrap().strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let total = blob.len();
    let start = asked.unwrap_or(0);
    if start > 0 && start >= total {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let rest = blob.slice(start..);
    let cut = behaviour.cut_after.load(Ordering::SeqCst);
    // Configs begin so; only layers are cut.
    let cuts = cut > 0 && rest.len() > cut && blob.first() != Some(&b'{');
    let cuts =
        cuts && behaviour.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
    let length = rest.len();
    let body = if cuts {
        let part = rest.slice(..cut);
        Body::from_stream(futures_util::stream::unfold(Some(part), async |part| match part {
            Some(part) => Some((Ok(part), None)),
            None => {
                // A stream that waits has what came before sent.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("cut")), None))
            }
        }))
    } else {
        Body::from(rest)
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if asked.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {start}-{}/{total}", total - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    response
}
