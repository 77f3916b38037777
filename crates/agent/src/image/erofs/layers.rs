//! Images of the store's layers, made when first asked for and kept beside the layer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::{ErofsError, Options, build};
use crate::image::digest::Digest;
use crate::image::store::{Image, ImageStore, Inner};

/// Builds that run at a time. One is limited by one processor or the disk, and may take some 100 MiB of memory.
const PARALLEL: usize = 2;

/// A layer as an EROFS image: a regular file that is never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErofsLayer {
    /// There for as long as the [`Image`] that it was made for lives, or is leased. Nobody but root may read it.
    pub path: PathBuf,
    /// In bytes, a multiple of 4096.
    pub length: u64,
}

/// Builds under way.
pub(in crate::image) struct Builds {
    layers: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    permits: Arc<Semaphore>,
}

impl Default for Builds {
    fn default() -> Self {
        Self { layers: Mutex::default(), permits: Arc::new(Semaphore::new(PARALLEL)) }
    }
}

impl Builds {
    /// Waits until nobody else builds this layer's image.
    async fn lock(&self, diff_id: Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            match layers.get(&diff_id).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    layers.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    layers.insert(diff_id, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

impl ImageStore {
    /// The layers of `image` as EROFS images, in the order of [`Image::layers`]: lowest first, a layer that is listed
    /// twice once. Those not yet made are made now, each by one however many ask; it goes on when this is cancelled.
    ///
    /// They hold what overlayfs expects of a lower layer: whiteouts are 0:0 devices, opaque directories carry
    /// `trusted.overlay.opaque`. Linux 5.4 and later can mount them.
    pub async fn erofs(&self, image: &Image) -> Result<Vec<ErofsLayer>, ErofsError> {
        let layers = image.distinct_layers();
        let made = futures_util::future::try_join_all(layers.into_iter().map(|id| self.0.erofs(id)));
        let made = made.await;
        // What was made takes disk, and is not durable yet.
        self.0.upkeep_later();
        made
    }
}

impl Inner {
    async fn erofs(self: &Arc<Self>, diff_id: Digest) -> Result<ErofsLayer, ErofsError> {
        if let Some(layer) = self.built(diff_id) {
            return Ok(layer);
        }
        let failed = |error| ErofsError::host("build the image of layer", diff_id, error);
        let lock = self.builds.lock(diff_id).await;
        if let Some(layer) = self.built(diff_id) {
            return Ok(layer);
        }
        let permit = self.builds.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|error| failed(std::io::Error::other(error)))?;
        // The image that was asked for may be dropped before this is done.
        let pinned = self.pins.hold([diff_id]);
        let inner = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let built = inner.build(diff_id);
            drop((pinned, permit, lock));
            built
        });
        work.await.map_err(|error| failed(std::io::Error::other(error)))?
    }

    fn built(&self, diff_id: Digest) -> Option<ErofsLayer> {
        let length = self.index().layers.get(&diff_id)?.record.erofs.as_ref()?.bytes;
        Some(ErofsLayer { path: self.disk.layer_erofs(diff_id), length })
    }

    fn build(&self, diff_id: Digest) -> Result<ErofsLayer, ErofsError> {
        let failed = |error| ErofsError::host("store the image of layer", diff_id, error);
        self.make_room_for_erofs(diff_id);
        let began = std::time::Instant::now();
        let staged = self.disk.stage_file().map_err(failed)?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&diff_id.bytes()[..16]);
        let options = Options { uuid, min_free_bytes: self.options.min_free_bytes };
        let length = build(&self.disk.layer_root(diff_id), staged.file(), &options)?;
        let mut index = self.index();
        let gone = || failed(std::io::ErrorKind::NotFound.into());
        let layer = index.layers.get_mut(&diff_id).ok_or_else(gone)?;
        layer.record = self.disk.publish_erofs(staged, &layer.record, length).map_err(failed)?;
        tracing::debug!(layer = %diff_id, length, took = ?began.elapsed(), "built a layer's EROFS image");
        Ok(ErofsLayer { path: self.disk.layer_erofs(diff_id), length })
    }

    /// An image takes about as much disk as its layer.
    fn make_room_for_erofs(&self, diff_id: Digest) {
        let layer = self.index().layers.get(&diff_id).map_or(0, |layer| layer.record.disk_bytes);
        let needed = layer.saturating_add(self.options.min_free_bytes);
        let lacking = match self.disk.free_bytes() {
            Ok(free) => needed.saturating_sub(free),
            Err(_) => return,
        };
        if lacking == 0 {
            return;
        }
        // Should that not do, building says so.
        if let Err(error) = self.collect(|_, collected| collected.bytes >= lacking) {
            tracing::warn!(%error, "cannot remove images to make room");
        }
    }
}
