//! Downloads of layers: shared between pulls, resumed when they are cut.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

use super::error::PullErrorKind;
use super::layer::{Expected, Feed, LayerFailure, Unpacker};
use super::registry::{Remote, RequestError, TokenKey};
use super::store::Inner;

/// A registry that did not answer is not asked again for this long by those who have the image.
const AWAY: Duration = Duration::from_secs(10);
/// Attempts in a row for a layer without [`PROGRESS`] bytes between them, and attempts in all.
const LAYER_ATTEMPTS: u32 = 5;
const LAYER_ATTEMPTS_TOTAL: u32 = 100;
const PROGRESS: u64 = 1 << 20;

/// Downloads under way, and registries that did not answer.
#[derive(Default)]
pub(super) struct Pulls {
    layers: Mutex<HashMap<LayerKey, Download>>,
    away: Mutex<HashMap<String, Instant>>,
}

/// One download serves all who want these bytes from this repository with these credentials. Not by content alone: a slow
/// or lying registry, or credentials that do not do, shall not fail the pulls of others.
#[derive(PartialEq, Eq, Hash)]
struct LayerKey {
    remote: TokenKey,
    expected: Expected,
}

pub(super) type LayerResult = Result<(), (PullErrorKind, u32)>;

struct Download {
    /// Weak, so that a download whose last waiter is gone is gone, too.
    future: WeakShared<BoxFuture<'static, LayerResult>>,
    received: Arc<AtomicU64>,
}

impl Pulls {
    pub(super) fn is_away(&self, base: &str) -> bool {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.retain(|_, until| Instant::now() < *until);
        away.contains_key(base)
    }

    pub(super) fn set_away(&self, base: &str) {
        self.away
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(base.to_owned(), Instant::now() + AWAY);
    }
}

impl Inner {
    /// Joins the download of a layer, or begins it.
    pub(super) fn download(
        self: &Arc<Self>,
        remote: &Remote,
        layer: Expected,
    ) -> (Shared<BoxFuture<'static, LayerResult>>, Arc<AtomicU64>) {
        let key = LayerKey { remote: remote.key().clone(), expected: layer };
        let mut layers = self.pulls.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = layers.get(&key)
            && let Some(future) = download.future.upgrade()
            // One that has ended is of no use: if it went well the layer was found, or has gone since.
            && future.peek().is_none()
        {
            return (future, download.received.clone());
        }
        layers.retain(|_, download| download.future.upgrade().is_some_and(|future| future.peek().is_none()));
        let received = Arc::new(AtomicU64::new(0));
        let (inner, remote, counter) = (self.clone(), remote.clone(), received.clone());
        let future = async move { inner.fetch_layer(&remote, layer, &counter).await }.boxed().shared();
        if let Some(weak) = future.downgrade() {
            layers.insert(key, Download { future: weak, received: received.clone() });
        }
        (future, received)
    }

    /// Downloads, verifies, unpacks and publishes one layer.
    async fn fetch_layer(&self, remote: &Remote, layer: Expected, received: &AtomicU64) -> LayerResult {
        if self.has_layer(layer.diff_id) {
            return Ok(());
        }
        let host = |what: &str, error| (host_failure(what, error), 1);
        let staging = self.disk.stage().map_err(|e| host("make a directory", e))?;
        let (feed, unpacker) =
            Unpacker::start(layer, staging, self.limits()).map_err(|e| host("start a thread", e))?;
        let fed = self.feed(remote, layer, &feed, received).await;
        let finished = match fed {
            Ok(attempts) => {
                // When the pipeline has closed, it says itself why.
                let _ = feed.end().await;
                unpacker.finish().await.map_err(|failure| (failure, attempts))
            }
            Err((kind, attempts)) => {
                drop(feed);
                // For what it leaves behind to be gone.
                let _ = unpacker.finish().await;
                return Err((kind, attempts));
            }
        };
        let (unpacked, staging) = finished.map_err(|(failure, attempts)| match failure {
            LayerFailure::Failed(kind) => (kind, attempts),
            LayerFailure::Aborted => (PullErrorKind::Host("layer was aborted".to_owned()), attempts),
        })?;
        self.add_layer(layer.diff_id, unpacked, staging).map_err(|e| host("publish a layer", e))
    }

    /// Puts a layer's bytes into its pipeline, asking again from where a response was cut. Gives the attempts it took.
    async fn feed(
        &self,
        remote: &Remote,
        layer: Expected,
        feed: &Feed,
        received: &AtomicU64,
    ) -> Result<u32, (PullErrorKind, u32)> {
        let what = || format!("layer {}", layer.digest);
        let mut offset = 0;
        let mut attempts = 1;
        let mut in_row = 1;
        while offset < layer.size {
            let began = offset;
            let interrupted = match self.stream_blob(remote, layer, feed, &mut offset, received).await {
                Ok(Streamed::Closed) => return Ok(attempts),
                Ok(Streamed::Ended) if offset == layer.size => break,
                Ok(Streamed::Ended) => RequestError::NotFound,
                Err(error) => error,
            };
            let truncated =
                || PullErrorKind::Truncated(format!("{} after {offset} of {} bytes", what(), layer.size));
            let (kind, wait) = match interrupted {
                RequestError::Final(kind) => return Err((kind, attempts)),
                RequestError::NotFound if began == offset => {
                    return Err((PullErrorKind::NotFound(what()), attempts));
                }
                RequestError::NotFound => (truncated(), None),
                RequestError::Transient { what, retry_after } => {
                    (PullErrorKind::Unreachable(what), retry_after)
                }
            };
            if offset - began >= PROGRESS {
                in_row = 0;
            }
            if in_row >= LAYER_ATTEMPTS || attempts >= LAYER_ATTEMPTS_TOTAL {
                return Err((kind, attempts));
            }
            tracing::debug!(layer = %layer.digest, offset, attempts, "layer download was cut; resuming");
            tokio::time::sleep(wait.unwrap_or_else(|| backoff(in_row.max(1)))).await;
            in_row += 1;
            attempts += 1;
        }
        Ok(attempts)
    }

    async fn stream_blob(
        &self,
        remote: &Remote,
        layer: Expected,
        feed: &Feed,
        offset: &mut u64,
        received: &AtomicU64,
    ) -> Result<Streamed, RequestError> {
        let mut blob = self.registry.blob(remote, layer.digest, *offset).await?;
        while let Some(chunk) = blob.chunk().await? {
            let after = *offset + chunk.len() as u64;
            if after > layer.size {
                let what = "layer content".to_owned();
                return Err(RequestError::Final(PullErrorKind::SizeMismatch {
                    what,
                    expected: layer.size,
                    actual: after,
                }));
            }
            if feed.send(chunk).await.is_err() {
                return Ok(Streamed::Closed);
            }
            *offset = after;
            received.store(after, Ordering::Relaxed);
        }
        Ok(Streamed::Ended)
    }
}

/// How a response ended.
enum Streamed {
    /// All it had was taken.
    Ended,
    /// The pipeline takes no more.
    Closed,
}

/// What a failed operation on the store's own files means.
pub(super) fn host_failure(what: &str, error: io::Error) -> PullErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PullErrorKind::DiskFull(what.to_owned()),
        _ => PullErrorKind::Host(format!("cannot {what}: {error}")),
    }
}

/// 200 ms, doubled with each attempt, at most 5 s, with up to a quarter at random so that many do not come at once.
pub(super) fn backoff(attempt: u32) -> Duration {
    let base = Duration::from_millis(200).saturating_mul(1 << attempt.saturating_sub(1).min(5));
    base.min(Duration::from_secs(5)).mul_f64(1.0 + rand::random::<f64>() / 4.0)
}
