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

/// The most that configs of all images take in memory, in bytes. Not a matter of disk: an image without layers costs none.
const CONFIGS_MAX: u64 = 256 << 20;
/// The most references that are kept.
const REFS_MAX: usize = 100_000;

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
    /// Size of the config document, which is what the record costs in memory.
    pub(crate) config_bytes: u64,
    pub(crate) config: ImageConfig,
}

impl ImageRecord {
    /// Lowest first, each once: at its highest place.
    pub(crate) fn distinct_layers(&self) -> Vec<Digest> {
        let mut distinct = Vec::with_capacity(self.diff_ids.len());
        for (position, id) in self.diff_ids.iter().enumerate() {
            if !self.diff_ids[position + 1..].contains(id) {
                distinct.push(*id);
            }
        }
        distinct
    }
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
    /// Whether records were written since the last sync.
    pub(crate) unsynced_records: bool,
    last_serial: u64,
}

pub(crate) struct Layer {
    pub(crate) record: LayerRecord,
    /// Tells a layer from one of the same content that was here before and went.
    pub(crate) serial: u64,
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
        self.layers.values().map(|layer| layer.record.all_disk_bytes()).sum()
    }

    /// Whether images take more disk than `budget` bytes, or more memory than they may.
    pub(crate) fn is_over(&self, budget: u64) -> bool {
        let configs: u64 = self.images.values().map(|image| image.config_bytes).sum();
        self.disk_bytes() > budget || configs > CONFIGS_MAX || self.refs.len() > REFS_MAX
    }

    pub(crate) fn insert_layer(&mut self, record: LayerRecord, written: SystemTime) {
        self.last_serial += 1;
        self.layers.insert(record.diff_id, Layer { record, serial: self.last_serial, written });
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn add_layer(index: &mut Index, name: &str, age: u64) {
        let record = LayerRecord {
            diff_id: digest(name),
            bytes: 1,
            disk_bytes: 10,
            synced: true,
            boot: String::new(),
            erofs: None,
        };
        index.insert_layer(record, SystemTime::UNIX_EPOCH + Duration::from_secs(age));
    }

    fn add_image(index: &mut Index, name: &str, layers: &[&str], config_bytes: u64) {
        let record = ImageRecord {
            manifest_digest: digest(name),
            config_digest: digest(name),
            platform: Platform::LinuxAmd64,
            diff_ids: layers.iter().map(|l| digest(l)).collect(),
            compressed_bytes: 1,
            config_bytes,
            config: ImageConfig::default(),
        };
        index.images.insert(digest(name), Arc::new(record));
    }

    fn name(reference: &str) -> RefName {
        let platform = Platform::LinuxAmd64;
        RefName { scope: String::new(), reference: reference.to_owned(), endpoint: None, platform }
    }

    fn add_ref(index: &mut Index, reference: &str, image: &str, used: u64) {
        let record =
            RefRecord { name: name(reference), target_digest: digest(image), manifest_digest: digest(image) };
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
        index.refs.insert(name(reference), Ref { record, used });
    }

    /// Evicts all that can go, in order.
    fn evictions(index: &mut Index, pins: &Pins) -> Vec<Eviction> {
        let mut order = Vec::new();
        while let Some(eviction) = index.next_eviction(pins) {
            match &eviction {
                Eviction::Layer(id) => drop(index.layers.remove(id)),
                Eviction::Image(id) => drop(index.images.remove(id)),
                Eviction::Ref(name) => drop(index.refs.remove(name)),
            }
            order.push(eviction);
        }
        order
    }

    #[test]
    fn evicts_orphans_then_the_nameless_then_the_coldest() {
        let mut index = Index::default();
        for (layer, age) in [("base", 1), ("a", 2), ("b", 3), ("old", 4), ("orphan2", 6), ("orphan1", 5)] {
            add_layer(&mut index, layer, age);
        }
        add_image(&mut index, "A", &["base", "a"], 0);
        add_image(&mut index, "B", &["base", "b"], 0);
        add_image(&mut index, "nameless", &["old"], 0);
        add_ref(&mut index, "a", "A", 100);
        add_ref(&mut index, "b", "B", 50);
        let expected = vec![
            Eviction::Layer(digest("orphan1")),
            Eviction::Layer(digest("orphan2")),
            Eviction::Image(digest("nameless")),
            Eviction::Layer(digest("old")),
            Eviction::Ref(name("b")),
            Eviction::Image(digest("B")),
            Eviction::Layer(digest("b")),
            Eviction::Ref(name("a")),
            Eviction::Image(digest("A")),
        ];
        let order = evictions(&mut index, &Pins::default());
        assert_eq!(order[..expected.len()], expected);
        assert!(index.layers.is_empty());
    }

    #[test]
    fn leases_and_pins_hold() {
        let mut index = Index::default();
        for layer in ["base", "a", "b", "orphan"] {
            add_layer(&mut index, layer, 1);
        }
        add_image(&mut index, "A", &["base", "a"], 0);
        add_image(&mut index, "B", &["base", "b"], 0);
        add_ref(&mut index, "b", "B", 1);
        // A has lost its name, but a task runs on it.
        let leased = LeasedImage { reference: "a".to_owned(), manifest_digest: digest("A") };
        index
            .leases
            .insert("task".to_owned(), LeaseRecord { owner: "task".to_owned(), images: vec![leased] });
        let pins = Pins::default();
        let pinned = pins.hold([digest("base"), digest("b"), digest("orphan"), digest("orphan")]);
        assert!(evictions(&mut index, &pins).is_empty());
        drop(pinned);
        evictions(&mut index, &pins);
        assert_eq!(index.images.keys().collect::<Vec<_>>(), [&digest("A")]);
        assert!(index.complete(digest("A")).is_some() && index.layers.len() == 2);
    }

    #[test]
    fn memory_is_bounded_as_disk_is() {
        let mut index = Index::default();
        assert!(!index.is_over(0));
        for number in 0..65 {
            add_image(&mut index, &number.to_string(), &[], 4 << 20);
        }
        assert!(index.is_over(u64::MAX), "260 MiB of configs");
        add_layer(&mut index, "a", 1);
        index.images.clear();
        assert!(index.is_over(9) && !index.is_over(10));
    }

    #[test]
    fn names_are_told_apart() {
        let base = name("r");
        let others = [
            RefName { scope: "r".into(), reference: String::new(), ..base.clone() },
            RefName { endpoint: Some(String::new()), ..base.clone() },
            RefName { platform: Platform::LinuxArm64, ..base.clone() },
        ];
        assert!(others.iter().all(|other| other.key() != base.key()));
    }
}
