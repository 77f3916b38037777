//! What the store holds, in memory: images, references, leases, and which layers may not go.
//!
//! Pure bookkeeping: [`super::store`] does what it decides to the disk, under the same lock.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::config::ImageConfig;
use super::digest::Digest;
use super::disk::LayerRecord;
use super::manifest::Platform;

/// `manifests/<digest>.json`: an image, apart from the names it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) manifest_digest: Digest,
    pub(crate) config_digest: Digest,
    /// What it was found to run on.
    pub(crate) platform: Platform,
    /// Lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    /// Sum of the layers' compressed sizes.
    pub(crate) compressed_bytes: u64,
    pub(crate) config: ImageConfig,
}

/// `refs/<key>.json`: what a reference led to when it was last pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefRecord {
    pub(crate) name: RefName,
    /// Of the document that the reference names: an index, or the manifest itself.
    pub(crate) target_digest: Digest,
    pub(crate) manifest_digest: Digest,
}

/// What makes two pulls mean the same image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct RefName {
    /// Whose cache entry it is: entries of one scope are not seen by another.
    pub(crate) scope: String,
    /// Normalised.
    pub(crate) reference: String,
    /// Base URL and prefix when the request said where the host really lives.
    pub(crate) endpoint: Option<String>,
    pub(crate) platform: Platform,
}

impl RefName {
    /// The record's file name, without its extension.
    pub(crate) fn key(&self) -> String {
        // A JSON array of strings has one reading only, whatever the strings hold.
        let parts = (&self.scope, &self.reference, &self.endpoint, self.platform);
        Digest::of(&serde_json::to_vec(&parts).unwrap_or_default()).hex()
    }
}

/// `leases/<key>.json`: the images that an owner uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) owner: String,
    pub(crate) images: Vec<LeasedImage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeasedImage {
    pub(crate) reference: String,
    pub(crate) manifest_digest: Digest,
}

pub(crate) fn lease_key(owner: &str) -> String {
    Digest::of(owner.as_bytes()).hex()
}

#[derive(Default)]
pub(crate) struct Index {
    pub(crate) layers: HashMap<Digest, Layer>,
    pub(crate) images: HashMap<Digest, Arc<ImageRecord>>,
    pub(crate) refs: HashMap<RefName, Ref>,
    pub(crate) leases: HashMap<String, LeaseRecord>,
}

pub(crate) struct Layer {
    pub(crate) record: LayerRecord,
    pub(crate) written: SystemTime,
}

pub(crate) struct Ref {
    pub(crate) record: RefRecord,
    pub(crate) used: SystemTime,
}

/// One step of making room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    Layer(Digest),
    Image(Digest),
    Ref(RefName),
}

impl Index {
    /// Estimate of the disk space used, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.layers.values().map(|layer| layer.record.disk_bytes).sum()
    }

    /// The image that `name` led to, when all of it is here.
    pub(crate) fn resolve(&self, name: &RefName) -> Option<(&RefRecord, &Arc<ImageRecord>)> {
        let record = &self.refs.get(name)?.record;
        Some((record, self.complete(record.manifest_digest)?))
    }

    /// The image with this manifest, when all its layers are here.
    pub(crate) fn complete(&self, manifest_digest: Digest) -> Option<&Arc<ImageRecord>> {
        let image = self.images.get(&manifest_digest)?;
        image.diff_ids.iter().all(|id| self.layers.contains_key(id)).then_some(image)
    }

    pub(crate) fn is_leased(&self, manifest_digest: Digest) -> bool {
        self.leases
            .values()
            .any(|lease| lease.images.iter().any(|image| image.manifest_digest == manifest_digest))
    }

    /// What goes next to make room: layers of no image, then images without a name, then the reference used least
    /// recently whose image nobody uses. `None` when the rest is in use.
    pub(crate) fn next_eviction(&self, pins: &Pins) -> Option<Eviction> {
        let named: HashSet<Digest> = self.refs.values().map(|r| r.record.manifest_digest).collect();
        let leased: HashSet<Digest> =
            self.leases.values().flat_map(|l| l.images.iter().map(|i| i.manifest_digest)).collect();
        let used: HashSet<Digest> =
            self.images.values().flat_map(|image| image.diff_ids.iter().copied()).collect();
        let orphan = self
            .layers
            .iter()
            .filter(|(id, _)| !used.contains(id) && !pins.holds(id))
            .min_by_key(|(_, layer)| layer.written);
        if let Some((id, _)) = orphan {
            return Some(Eviction::Layer(*id));
        }
        let free = |id: &Digest| {
            !leased.contains(id)
                && !self
                    .images
                    .get(id)
                    .is_some_and(|i| !i.diff_ids.is_empty() && i.diff_ids.iter().all(|l| pins.holds(l)))
        };
        if let Some(id) = self.images.keys().find(|id| !named.contains(id) && free(id)) {
            return Some(Eviction::Image(*id));
        }
        let coldest =
            self.refs.iter().filter(|(_, r)| free(&r.record.manifest_digest)).min_by_key(|(_, r)| r.used);
        coldest.map(|(name, _)| Eviction::Ref(name.clone()))
    }
}

/// Layers that a running pull or a live [`super::Image`] needs, counted. In memory only: after a restart nobody has any.
#[derive(Clone, Default)]
pub(crate) struct Pins(Arc<Mutex<HashMap<Digest, usize>>>);

impl Pins {
    pub(crate) fn hold(&self, ids: impl IntoIterator<Item = Digest>) -> Pinned {
        let ids: Vec<Digest> = ids.into_iter().collect();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &ids {
            *counts.entry(*id).or_default() += 1;
        }
        Pinned { pins: self.clone(), ids }
    }

    pub(crate) fn holds(&self, id: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }
}

/// Keeps layers from going until dropped.
pub(crate) struct Pinned {
    pins: Pins,
    ids: Vec<Digest>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut counts = self.pins.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.ids {
            if let Some(count) = counts.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(id);
                }
            }
        }
    }
}
