//! A pull: from a reference to an image in the store.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::config::{ConfigDocument, ImageConfig};
use super::digest::Digest;
use super::download::{backoff, host_failure};
use super::error::{PullError, PullErrorKind, Stage, printable};
use super::index::{ImageRecord, RefName};
use super::layer::Expected;
use super::manifest::{self, Document, Manifest, Platform};
use super::reference::Reference;
use super::registry::{Auth, Registry, RegistryEndpoint, Remote, RequestError};
use super::store::{Image, ImageStore, Inner};

/// Attempts for a manifest or a config when there is no cached image to fall back on.
const DOCUMENT_ATTEMPTS: u32 = 3;
/// The longest that one attempt for a document may take.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same, when there is a cached image to fall back on: a start should not wait long for a registry that is away.
const CACHED_TIMEOUT: Duration = Duration::from_secs(5);
/// How often progress is reported.
const REPORT: Duration = Duration::from_millis(100);
/// Indexes within indexes that are followed.
const INDEX_DEPTH: usize = 2;

/// When to ask the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time, as Fargate does. What the registry still has is not downloaded again, and when the registry cannot be
    /// reached the cached image is used.
    #[default]
    Always,
    /// Only when the image is not in the store.
    IfNotPresent,
}

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// As the user wrote it, such as `nginx` or `localhost:5000/app:1`.
    pub reference: String,
    /// Whose cache this is, such as an account id. What one scope pulled under a reference another one does not see: it
    /// may not be allowed to. Layers, found by content, are shared by all.
    pub scope: String,
    pub auth: Auth,
    /// Where the reference's host really lives, for the built-in registry.
    pub endpoint: Option<RegistryEndpoint>,
    pub policy: PullPolicy,
    pub platform: Platform,
}

impl PullRequest {
    /// An anonymous request for this host's platform, always asking the registry, in the scope `""`.
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            scope: String::new(),
            auth: Auth::Anonymous,
            endpoint: None,
            policy: PullPolicy::Always,
            platform: Platform::host(),
        }
    }
}

/// How far a pull is. Layers that were in the store already count as done, their bytes do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub layers_total: usize,
    pub layers_done: usize,
    /// Compressed bytes to download.
    pub bytes_total: u64,
    pub bytes_done: u64,
}

impl From<PullProgress> for link::PullProgress {
    fn from(progress: PullProgress) -> Self {
        Self {
            layers_total: progress.layers_total as u64,
            layers_done: progress.layers_done as u64,
            bytes_total: progress.bytes_total,
            bytes_done: progress.bytes_done,
        }
    }
}

/// What a reference leads to.
struct Resolved {
    target_digest: Digest,
    manifest_digest: Digest,
    content: Content,
}

enum Content {
    Known(Arc<ImageRecord>),
    New { manifest: Manifest, layers: Vec<Expected>, config: Box<ImageConfig> },
}

/// A failure before it is known which image it is about.
struct Failed {
    stage: Stage,
    attempts: u32,
    kind: PullErrorKind,
}

impl ImageStore {
    /// Gets an image into the store, verified and unpacked. What is there already is not downloaded again.
    ///
    /// `progress` is called a few times a second, from the task that polls this; it must not block. Dropping the future
    /// ends the downloads that no other pull shares; finished layers stay.
    pub async fn pull(
        &self,
        request: PullRequest,
        progress: impl Fn(PullProgress) + Send + Sync,
    ) -> Result<Arc<Image>, PullError> {
        let reference: Reference = request.reference.parse().map_err(|e: super::ReferenceError| {
            let kind = PullErrorKind::InvalidReference(e.to_string());
            PullError::new(printable(&request.reference), Stage::Reference, 1, kind)
        })?;
        let name = RefName {
            scope: request.scope.clone(),
            reference: reference.to_string(),
            endpoint: request.endpoint.as_ref().map(|e| format!("{}/{}", e.base_url, e.repository_prefix)),
            platform: request.platform,
        };
        self.0
            .pull(&request, &reference, name, &progress)
            .await
            .map_err(|failed| PullError::new(&reference, failed.stage, failed.attempts, failed.kind))
    }
}

impl Inner {
    async fn pull(
        self: &Arc<Self>,
        request: &PullRequest,
        reference: &Reference,
        name: RefName,
        progress: &(impl Fn(PullProgress) + Send + Sync),
    ) -> Result<Arc<Image>, Failed> {
        let cached = self.cached(&name);
        let remote = self
            .registry
            .remote(reference, request.endpoint.as_ref(), &request.auth)
            .map_err(|kind| Failed { stage: Stage::Reference, attempts: 1, kind })?;
        let mut fallback = None;
        if let Some((record, image)) = cached {
            let current = request.policy == PullPolicy::IfNotPresent
                || self.still_same(&remote, reference, record.target_digest).await?;
            if current {
                let layers = image.diff_ids.len();
                progress(PullProgress {
                    layers_total: layers,
                    layers_done: layers,
                    ..PullProgress::default()
                });
                return Ok(image);
            }
            fallback = Some(image);
        }
        let resolved = match (self.resolve(&remote, reference, request.platform).await, fallback) {
            (Ok(resolved), _) => resolved,
            (Err(Failed { kind: PullErrorKind::Unreachable(what), .. }), Some(image)) => {
                tracing::warn!(%reference, what, "registry cannot be reached; using the cached image");
                return Ok(image);
            }
            (Err(failed), _) => return Err(failed),
        };
        let (record, _pinned) = match resolved.content {
            Content::Known(record) => {
                let pinned = self.pins.hold(record.diff_ids.iter().copied());
                // It may have gone before it was pinned.
                match self.known(record.manifest_digest, record.platform) {
                    Some(record) => (record, pinned),
                    None => {
                        let kind = PullErrorKind::Host("image was removed while it was pulled".to_owned());
                        return Err(Failed { stage: Stage::Store, attempts: 1, kind });
                    }
                }
            }
            Content::New { manifest, layers, config } => {
                let pinned = self.pins.hold(layers.iter().map(|layer| layer.diff_id));
                self.fetch_layers(&remote, &layers, progress).await?;
                let record = ImageRecord {
                    manifest_digest: resolved.manifest_digest,
                    config_digest: manifest.config_digest,
                    platform: request.platform,
                    diff_ids: layers.iter().map(|layer| layer.diff_id).collect(),
                    config_bytes: manifest.config_size,
                    compressed_bytes: layers.iter().map(|layer| layer.size).sum(),
                    config: *config,
                };
                (Arc::new(record), pinned)
            }
        };
        let added = self
            .add_image(name, resolved.target_digest, &record)
            .map_err(|e| store_failed("store the image", e))?;
        let image = added.ok_or_else(|| Failed {
            stage: Stage::Store,
            attempts: 1,
            kind: PullErrorKind::TooLarge {
                what: "unpacked image".to_owned(),
                limit: format!("{} bytes", self.options.image_limit_bytes),
            },
        })?;
        self.upkeep_later();
        Ok(image)
    }

    /// Whether the registry still leads a reference to `known`; yes when it cannot be asked.
    async fn still_same(
        &self,
        remote: &Remote,
        reference: &Reference,
        known: Digest,
    ) -> Result<bool, Failed> {
        if self.pulls.is_away(remote.base()) {
            return Ok(true);
        }
        let target = reference.target();
        let asked = tokio::time::timeout(CACHED_TIMEOUT, self.registry.head_manifest(remote, &target)).await;
        let what = match asked {
            Ok(Ok(digest)) => return Ok(digest == Some(known)),
            Ok(Err(RequestError::Transient { what, .. })) => what,
            // Registries that know no HEAD get the full question.
            Ok(Err(RequestError::Final(PullErrorKind::Unsupported(_)))) => return Ok(false),
            Ok(Err(error)) => return Err(document_failed(Stage::Manifest, error, &reference.to_string(), 1)),
            Err(_) => "i/o timeout".to_owned(),
        };
        tracing::warn!(%reference, registry = remote.base(), what, "registry cannot be reached; using the cached image");
        self.pulls.set_away(remote.base());
        Ok(true)
    }

    /// Finds the manifest and the config of an image.
    async fn resolve(
        &self,
        remote: &Remote,
        reference: &Reference,
        platform: Platform,
    ) -> Result<Resolved, Failed> {
        let name = reference.to_string();
        let registry = &self.registry;
        let fetch = |target: String| {
            let name = name.clone();
            async move {
                let fetched = persist(|| registry.manifest(remote, &target)).await;
                fetched.map_err(|(error, attempts)| document_failed(Stage::Manifest, error, &name, attempts))
            }
        };
        let refused = |kind| Failed { stage: Stage::Manifest, attempts: 1, kind };
        let mut fetched = fetch(reference.target()).await?;
        let target_digest = fetched.digest;
        for _ in 0..=INDEX_DEPTH {
            if let Some(record) = self.known(fetched.digest, platform) {
                return Ok(Resolved {
                    target_digest,
                    manifest_digest: fetched.digest,
                    content: Content::Known(record),
                });
            }
            match manifest::parse(&fetched.bytes, fetched.content_type.as_deref()).map_err(refused)? {
                Document::Image(manifest) => {
                    let (layers, config) = self.config(remote, reference, &manifest, platform).await?;
                    let config = Box::new(config);
                    let content = Content::New { manifest, layers, config };
                    return Ok(Resolved { target_digest, manifest_digest: fetched.digest, content });
                }
                Document::Index(index) => {
                    let chosen = index.select(platform).map_err(refused)?;
                    if let Some(record) = self.known(chosen, platform) {
                        return Ok(Resolved {
                            target_digest,
                            manifest_digest: chosen,
                            content: Content::Known(record),
                        });
                    }
                    fetched = fetch(chosen.to_string()).await?;
                }
            }
        }
        Err(refused(PullErrorKind::Unsupported("indexes are nested too deep".to_owned())))
    }

    /// Reads an image's config, and brings its diff ids together with the manifest's layers.
    async fn config(
        &self,
        remote: &Remote,
        reference: &Reference,
        manifest: &Manifest,
        platform: Platform,
    ) -> Result<(Vec<Expected>, ImageConfig), Failed> {
        let Manifest { config_digest, config_size, layers } = manifest;
        let bytes = persist(|| read_blob(&self.registry, remote, *config_digest, *config_size))
            .await
            .map_err(|(error, attempts)| {
                document_failed(Stage::Blob, error, &format!("config {config_digest}"), attempts)
            })?;
        let refused = |kind| Failed { stage: Stage::Manifest, attempts: 1, kind };
        let document: ConfigDocument = serde_json::from_slice(&bytes).map_err(|e| {
            refused(PullErrorKind::Malformed(format!(
                "image config is not valid: {}",
                printable(&e.to_string())
            )))
        })?;
        if !platform.runs(&document.os, &document.architecture) {
            return Err(refused(PullErrorKind::NoMatchingPlatform(platform.to_string())));
        }
        let (diff_ids, config) = document.into_parts();
        if diff_ids.len() != layers.len() {
            let what =
                format!("number of layers and diffIDs don't match: {} != {}", layers.len(), diff_ids.len());
            return Err(Failed { stage: Stage::Blob, attempts: 1, kind: PullErrorKind::Malformed(what) });
        }
        tracing::debug!(%reference, layers = layers.len(), "resolved");
        let expected = layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| Expected { digest: layer.digest, size: layer.size, diff_id })
            .collect();
        Ok((expected, config))
    }

    /// Gets all layers that are not in the store.
    async fn fetch_layers(
        self: &Arc<Self>,
        remote: &Remote,
        layers: &[Expected],
        progress: &(impl Fn(PullProgress) + Send + Sync),
    ) -> Result<(), Failed> {
        let mut missing: Vec<Expected> = Vec::new();
        for layer in layers {
            if !missing.iter().any(|other| other.diff_id == layer.diff_id) && !self.has_layer(layer.diff_id) {
                missing.push(*layer);
            }
        }
        let total: u64 = missing.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        self.make_room(total, &missing).await?;
        // The longest first: it then is not what everything waits for at the end.
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.size));

        let received: Mutex<Vec<Arc<AtomicU64>>> = Mutex::default();
        let in_store = layers.len() - missing.len();
        let report = |done: usize| {
            let received = received.lock().unwrap_or_else(PoisonError::into_inner);
            progress(PullProgress {
                layers_total: layers.len(),
                layers_done: in_store + done,
                bytes_total: total,
                bytes_done: received.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum(),
            });
        };
        report(0);
        let mut downloads = stream::iter(missing)
            .map(|layer| {
                let (download, bytes) = self.download(remote, layer);
                received.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
                async move { download.await.map_err(|(kind, attempts)| (layer.digest, kind, attempts)) }
            })
            .buffer_unordered(self.options.parallel_downloads.max(1));
        let mut ticks = tokio::time::interval(REPORT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut done = 0;
        loop {
            tokio::select! {
                finished = downloads.next() => match finished {
                    None => break,
                    Some(Ok(())) => done += 1,
                    Some(Err((digest, kind, attempts))) => {
                        return Err(Failed { stage: Stage::Layer(digest.to_string()), attempts, kind });
                    }
                },
                _ = ticks.tick() => report(done),
            }
        }
        report(done);
        Ok(())
    }

    /// Sees to it that the disk has room for `compressed` bytes of layers, which is the least they can need.
    async fn make_room(self: &Arc<Self>, compressed: u64, missing: &[Expected]) -> Result<(), Failed> {
        let needed = compressed.saturating_add(self.options.min_free_bytes);
        let free = |inner: &Self| inner.disk.free_bytes().map_err(|e| store_failed("look at the disk", e));
        // Layers mostly are two to three times as large unpacked.
        let comfortable = needed.saturating_add(compressed.saturating_mul(2));
        let now = free(self)?;
        if missing.is_empty() || now >= comfortable {
            return Ok(());
        }
        let lacking = comfortable - now;
        let inner = self.clone();
        let collection =
            tokio::task::spawn_blocking(move || inner.collect(|_, collected| collected.bytes >= lacking));
        if let Ok(Err(error)) = collection.await {
            tracing::warn!(%error, "cannot remove images to make room");
        }
        match (free(self)?, missing.first()) {
            (now, Some(layer)) if now < needed => Err(Failed {
                stage: Stage::Layer(layer.digest.to_string()),
                attempts: 1,
                kind: PullErrorKind::DiskFull("layer".to_owned()),
            }),
            _ => Ok(()),
        }
    }
}

/// Reads a small blob and verifies it.
async fn read_blob(
    registry: &Registry,
    remote: &Remote,
    digest: Digest,
    size: u64,
) -> Result<Vec<u8>, RequestError> {
    let mut blob = registry.blob(remote, digest, 0).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > size {
            break;
        }
    }
    let actual = bytes.len() as u64;
    if actual != size {
        let what = "image config".to_owned();
        return Err(RequestError::Final(PullErrorKind::SizeMismatch { what, expected: size, actual }));
    }
    let actual = Digest::of(&bytes);
    if actual != digest {
        let what = "image config".to_owned();
        return Err(RequestError::Final(PullErrorKind::DigestMismatch { what, expected: digest, actual }));
    }
    Ok(bytes)
}

/// Tries a request for a document until it gives an answer. With an error comes the number of attempts.
async fn persist<T, F>(request: impl Fn() -> F) -> Result<T, (RequestError, u32)>
where
    F: Future<Output = Result<T, RequestError>>,
{
    let mut attempt = 1;
    loop {
        let answer = tokio::time::timeout(DOCUMENT_TIMEOUT, request()).await.unwrap_or_else(|_| {
            Err(RequestError::Transient { what: "i/o timeout".to_owned(), retry_after: None })
        });
        match answer {
            Ok(answer) => return Ok(answer),
            Err(RequestError::Transient { retry_after, .. }) if attempt < DOCUMENT_ATTEMPTS => {
                tokio::time::sleep(retry_after.unwrap_or_else(|| backoff(attempt))).await;
            }
            Err(error) => return Err((error, attempt)),
        }
        attempt += 1;
    }
}

fn document_failed(stage: Stage, error: RequestError, what: &str, attempts: u32) -> Failed {
    let kind = match error {
        RequestError::NotFound => PullErrorKind::NotFound(what.to_owned()),
        RequestError::Transient { what, .. } => PullErrorKind::Unreachable(what),
        RequestError::Final(kind) => kind,
    };
    Failed { stage, attempts, kind }
}

fn store_failed(what: &str, error: std::io::Error) -> Failed {
    Failed { stage: Stage::Store, attempts: 1, kind: host_failure(what, error) }
}
