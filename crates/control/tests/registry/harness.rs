//! A registry on a loopback port, and a plain HTTP client for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use control::api::Caller;
use control::registry::{Digest, Namespace, Registry, RegistryOptions, RepositoryName};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use store::Store;
use tempfile::TempDir;

pub fn namespace() -> Namespace {
    Namespace {
        account: model::AccountId::parse("123456789012").unwrap(),
        region: model::Region::parse("eu-west-1").unwrap(),
    }
}

pub fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

/// The ECR API without signatures: the caller is always the account's root.
async fn ecr_api(State(registry): State<Registry>, request: axum::extract::Request) -> Response {
    let caller = Caller {
        account: namespace().account,
        region: namespace().region,
        principal_arn: "arn:aws:iam::123456789012:root".to_owned(),
        request_id: "0".repeat(36),
    };
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let routed = aws_api::route(&parts, &body).unwrap();
    match control::api::ecr::dispatch(&registry, &caller, &routed, &body).await {
        Ok(control::api::Answer::Whole(response)) => response.map(Body::from),
        Ok(control::api::Answer::Stream(response)) => response,
        Err(error) => routed.encode_error(&error, &caller.request_id).map(Body::from),
    }
}

/// A registry that is served until it is dropped.
pub struct Server {
    pub registry: Registry,
    pub address: SocketAddr,
    pub directory: PathBuf,
    pub password: String,
    client: HttpClient,
    task: tokio::task::JoinHandle<()>,
    _temporary: Option<TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response that has been read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of the first error in the body.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

pub type HttpClient = Client<HttpConnector, Full<Bytes>>;

pub fn http_client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Sends a request and reads the response. Headers with empty values are left out.
pub async fn send(
    client: &HttpClient,
    address: SocketAddr,
    authorization: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    let authorization = [("authorization", authorization)];
    let others = headers.iter().filter(|(name, _)| *name != "authorization");
    for (name, value) in authorization.iter().chain(others) {
        if !value.is_empty() {
            request = request.header(*name, *value);
        }
    }
    let response = client.request(request.body(Full::new(body))?).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut RegistryOptions)) -> Self {
        let temporary = tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap();
        let mut server = Self::start_in(temporary.path(), change).await;
        server._temporary = Some(temporary);
        server
    }

    /// On a directory that may have been a registry's before.
    pub async fn start_in(directory: &Path, change: impl FnOnce(&mut RegistryOptions)) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut options = RegistryOptions::new(address.to_string());
        change(&mut options);
        let store = Store::open_embedded(&directory.join("state.db")).unwrap();
        let registry = Registry::open(&directory.join("registry"), store, options).await.unwrap();
        let api = axum::Router::new().fallback(ecr_api).with_state(registry.clone());
        let router = registry.router().merge(api);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (token, _) = registry.mint_token(&namespace(), "arn:aws:iam::123456789012:root");
        Self {
            registry,
            address,
            directory: directory.to_owned(),
            password: token.secret().to_owned(),
            client: http_client(),
            task,
            _temporary: None,
        }
    }

    /// Of a token made now: a test's clock can be days on.
    pub fn authorization(&self) -> String {
        self.registry.mint_token(&namespace(), "arn:aws:iam::123456789012:root").0.basic_authorization()
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let path = path.strip_prefix(&format!("http://{}", self.address)).unwrap_or(path);
        let given = headers.iter().find(|(name, _)| *name == "authorization");
        let authorization = given.map_or_else(|| self.authorization(), |(_, value)| (*value).to_owned());
        let sent = send(&self.client, self.address, &authorization, method, path, headers, body.into());
        sent.await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// Pushes a blob in one request.
    pub async fn push_blob(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.send(Method::POST, &path, &[], content.to_vec()).await.expect(201);
        digest
    }

    /// Pushes an image of one layer of this content.
    pub async fn push_image(&self, repository: &str, reference: &str, content: &[u8]) -> Digest {
        self.push_blob(repository, b"{}").await;
        self.push_blob(repository, content).await;
        let manifest = image_manifest(b"{}", content);
        self.put_manifest(repository, reference, OCI_MANIFEST, &manifest).await.expect(201);
        Digest::of(manifest.as_bytes())
    }

    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        manifest: &str,
    ) -> Answer {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(Method::PUT, &path, &[("content-type", media_type)], manifest.to_owned()).await
    }

    /// The file that a blob is kept in.
    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.directory.join("registry/blobs/sha256").join(&hex[..2]).join(hex)
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub fn image_manifest(config: &[u8], layer: &[u8]) -> String {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": Digest::of(layer), "size": layer.len()}],
    })
    .to_string()
}

pub fn index_manifest(children: &[(Digest, usize)]) -> String {
    let manifests: Vec<_> = children
        .iter()
        .map(|(digest, size)| serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size}))
        .collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string()
}

pub fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let text = format!("{user}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

/// Waits until the condition holds; the test fails if it never does.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
