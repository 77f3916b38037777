//! How commands talk to the running server: its AWS APIs, signed with the root key of the state
//! directory.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use aws_api::sigv4::Credentials;
use aws_api::{Operation, Timestamp};
use bytes::Bytes;
use control::credentials::AccessKey;
use serde::de::DeserializeOwned;

use crate::state_dir::{self, Endpoint};

/// A server found through its state directory.
pub struct Client {
    http: reqwest::Client,
    pub server: Endpoint,
    key: AccessKey,
    credentials: Credentials,
}

impl Client {
    pub fn find(state_dir: &Path) -> anyhow::Result<Self> {
        let server = state_dir::read_endpoint(state_dir)?;
        let key = AccessKey::load(&state_dir.join("credentials"))?;
        let credentials = Credentials {
            access_key_id: key.id.clone(),
            secret_key: key.secret.expose().to_owned().into(),
            session_token: None,
        };
        // A proxy of the environment is for the world outside, not for a server on this machine.
        // And as it is spoken to without TLS, a machine without certificate authorities will do.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self { http, server, key, credentials })
    }

    pub fn key(&self) -> &AccessKey {
        &self.key
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Calls an operation. The service's own error can be found with `downcast_ref::<aws_api::Error>`.
    pub async fn call<O: Operation>(&self, input: &O::Input) -> anyhow::Result<O::Output> {
        self.call_in::<O>(&self.server.region, input).await
    }

    /// The same in a region that may be another than the server's: CloudWatch Logs has all.
    pub async fn call_in<O: Operation>(&self, region: &str, input: &O::Input) -> anyhow::Result<O::Output> {
        let endpoint = self.server.url.parse().context("the server's URL makes no sense")?;
        let request = aws_api::client::request::<O>(&endpoint, &self.credentials, region, input, now())?;
        let (status, body) = self.send(request).await?;
        Ok(aws_api::client::parse::<O>(status, &body)?)
    }

    /// Posts to one of Coracle's own paths, signed.
    pub async fn post(&self, path: &str) -> anyhow::Result<()> {
        self.own(http::Method::POST, path).await.map(drop)
    }

    /// Posts to one of Coracle's own paths, signed, and takes the JSON that it answers with.
    pub async fn post_for<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.own(http::Method::POST, path).await?;
        serde_json::from_slice(&body).context("the server's answer makes no sense")
    }

    /// Deletes what one of Coracle's own paths names, signed.
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.own(http::Method::DELETE, path).await.map(drop)
    }

    /// Gets JSON from one of Coracle's own paths, signed.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.own(http::Method::GET, path).await?;
        serde_json::from_slice(&body).context("the server's answer makes no sense")
    }

    async fn own(&self, method: http::Method, path: &str) -> anyhow::Result<Bytes> {
        let request = http::Request::builder().method(method).uri(format!("{}{path}", self.server.url));
        let mut request = request.body(Bytes::new()).context("cannot make the request")?;
        aws_api::sigv4::sign(&mut request, &self.credentials, &self.server.region, "ecs", now())
            .context("cannot sign the request")?;
        let (status, body) = self.send(request).await?;
        if !status.is_success() {
            bail!("{}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    }

    async fn send(&self, request: http::Request<Bytes>) -> anyhow::Result<(http::StatusCode, Bytes)> {
        let request = reqwest::Request::try_from(request).context("cannot make the request")?;
        let (url, pid) = (&self.server.url, self.server.pid);
        let response = match self.http.execute(request).await {
            Err(error) if error.is_connect() => {
                bail!(
                    "no Coracle answers at {url}: its process, {pid}, is gone; start it again with `coracle up`"
                )
            }
            response => {
                response.with_context(|| format!("the Coracle at {url} (process {pid}) does not answer"))?
            }
        };
        let status = response.status();
        let body = response.bytes().await.context("the server's answer broke off")?;
        Ok((status, body))
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
