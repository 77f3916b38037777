//! The client's side of pushing (OCI distribution specification, "Push"), to the built-in registry.

use std::io;

use anyhow::{Context, bail};
use aws_api::ecr::GetAuthorizationTokenRequest;
use aws_api::ecr::operation::GetAuthorizationToken;
use bytes::Bytes;
use futures_util::Stream;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};

use super::archive::Extent;
use super::image::{self, Blob, Manifest};
use super::progress::Progress;
use crate::client::Client;
use crate::commands::print::printable;

/// Bytes that are read and sent at a time.
const CHUNK: usize = 256 << 10;

/// Of an error's text, what is shown.
const MAX_ERROR: usize = 500;

/// One repository, with the right to push to it.
pub struct Registry {
    http: reqwest::Client,
    url: String,
    repository: String,
    authorization: HeaderValue,
}

impl Registry {
    /// With ECR's own token.
    pub async fn log_in(client: &Client, repository: &str) -> anyhow::Result<Self> {
        let answer = client.call::<GetAuthorizationToken>(&GetAuthorizationTokenRequest::default()).await?;
        let data = answer.authorization_data.into_iter().flatten().next();
        let token = data.and_then(|data| data.authorization_token).context("the server gave no token")?;
        let mut authorization = HeaderValue::from_str(&format!("Basic {}", *token))
            .context("the server's token makes no sense")?;
        authorization.set_sensitive(true);
        let (http, url) = (client.http().clone(), client.server.url.clone());
        Ok(Self { http, url, repository: repository.to_owned(), authorization })
    }

    fn request(&self, method: http::Method, url: &str) -> reqwest::RequestBuilder {
        self.http.request(method, url).header(AUTHORIZATION, self.authorization.clone())
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.url, self.repository)
    }

    /// Sends a blob, unless the registry has it.
    pub async fn send_blob(&self, blob: &Blob, progress: &Progress) -> anyhow::Result<()> {
        let url = self.path(&format!("blobs/{}", blob.digest));
        let there = self.request(http::Method::HEAD, &url).send().await.context(NO_ANSWER)?;
        if there.status().is_success() {
            progress.skipped(blob);
            return Ok(());
        }
        let begun = self.request(http::Method::POST, &self.path("blobs/uploads/"));
        let begun = begun.header(CONTENT_LENGTH, 0).send().await.context(NO_ANSWER)?;
        let begun = expect(begun, StatusCode::ACCEPTED).await?;
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let url = self.upload_url(location.unwrap_or_default(), &blob.digest)?;
        let body = reqwest::Body::wrap_stream(chunks(blob.content.clone(), progress.clone()));
        let sent = self.request(http::Method::PUT, &url).header(CONTENT_LENGTH, blob.size());
        let sent = sent.header(CONTENT_TYPE, "application/octet-stream").body(body).send().await;
        let outcome = match sent.context(NO_ANSWER) {
            Ok(response) => expect(response, StatusCode::CREATED).await.map(drop),
            Err(error) => Err(error),
        };
        let Err(error) = outcome else {
            progress.done(blob);
            return Ok(());
        };
        // The registry refuses content that is not what its digest says. Was it the file's fault?
        let content = blob.content.clone();
        let found = tokio::task::spawn_blocking(move || image::sha256(content.reader())).await??;
        if found != blob.digest {
            bail!("the blob is damaged: its content has the digest {found}");
        }
        Err(error)
    }

    /// The token goes to the server only, wherever it says that the upload goes on.
    fn upload_url(&self, location: &str, digest: &str) -> anyhow::Result<String> {
        let url = if location.starts_with('/') && !location.starts_with("//") {
            format!("{}{location}", self.url)
        } else if location.starts_with(&format!("{}/", self.url)) {
            location.to_owned()
        } else {
            bail!("the server wants the upload to go on elsewhere ('{}')", printable(location));
        };
        let separator = if url.contains('?') { '&' } else { '?' };
        Ok(format!("{url}{separator}digest={digest}"))
    }

    /// Stores a manifest under a tag or digest.
    pub async fn put_manifest(&self, manifest: &Manifest, reference: &str) -> anyhow::Result<()> {
        let request = self.request(http::Method::PUT, &self.path(&format!("manifests/{reference}")));
        let request = request.header(CONTENT_TYPE, &manifest.media_type).body(manifest.bytes.clone());
        let response = request.send().await.context(NO_ANSWER)?;
        let refused = || format!("the registry did not take the manifest {}", manifest.digest);
        expect(response, StatusCode::CREATED).await.with_context(refused)?;
        Ok(())
    }
}

const NO_ANSWER: &str = "the registry does not answer";

/// The response if it has that status, else the error that it tells.
async fn expect(response: reqwest::Response, status: StatusCode) -> anyhow::Result<reqwest::Response> {
    if response.status() == status {
        return Ok(response);
    }
    let found = response.status();
    let body = response.bytes().await.unwrap_or_default();
    bail!("{}", told(&body).unwrap_or_else(|| format!("the registry answered {found}")))
}

/// Code and message of the first error (distribution specification, "Error Codes").
fn told(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = body.get("errors")?.get(0)?;
    let text = |key: &str| error.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let text = format!("{}: {}", text("code"), text("message"));
    Some(printable(&text).chars().take(MAX_ERROR).collect())
}

/// The content in pieces, read where blocking is allowed.
fn chunks(content: Extent, progress: Progress) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures_util::stream::try_unfold((content, 0), move |(content, position)| {
        let progress = progress.clone();
        async move {
            if position == content.len {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; CHUNK];
                let read = content.read_at(&mut buffer, position)?;
                buffer.truncate(read);
                if read == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                Ok((content, buffer))
            });
            let (content, buffer) = read.await.map_err(io::Error::other)??;
            progress.sent(buffer.len());
            let next = position + buffer.len() as u64;
            Ok(Some((Bytes::from(buffer), (content, next))))
        }
    })
}
