//! The store of images on this host, shared by all tasks.

use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::config::ImageConfig;
use super::digest::Digest;
use super::disk::{Disk, OpenError, Records, Staging};
use super::download::Pulls;
use super::erofs::Builds;
use super::index::{
    ImageRecord, Index, LeaseRecord, LeasedImage, Pinned, Pins, Ref, RefName, RefRecord, lease_key,
};
use super::layer::{Limits, Unpacked};
use super::manifest::Platform;
use super::registry::Registry;
use super::upkeep::Upkeep;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Images nobody uses are kept up to this much disk, in bytes.
    pub disk_budget_bytes: u64,
    /// Pulls leave this much of the file system free, in bytes.
    pub min_free_bytes: u64,
    /// `host` or `host:port` of registries to speak plain HTTP to, beside loopback hosts.
    pub insecure_registries: Vec<String>,
    /// PEM bundles of certificate authorities to trust beside the system's.
    pub ca_certificates: Vec<Vec<u8>>,
    /// The most file data that one layer may unpack to, in bytes.
    pub layer_limit_bytes: u64,
    /// The most file data that one image may unpack to, in bytes.
    pub image_limit_bytes: u64,
    /// The most entries that one layer may have.
    pub layer_limit_entries: u64,
    /// Layers that one pull downloads at a time.
    pub parallel_downloads: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            disk_budget_bytes: 50 << 30,
            min_free_bytes: 512 << 20,
            insecure_registries: Vec::new(),
            ca_certificates: Vec::new(),
            layer_limit_bytes: 100 << 30,
            image_limit_bytes: 100 << 30,
            layer_limit_entries: 2_000_000,
            parallel_downloads: 8,
        }
    }
}

/// An image in the store. Its layers stay for as long as this lives, or is leased.
pub struct Image {
    /// Normalised, such as `docker.io/library/nginx:latest`.
    pub reference: String,
    /// Of the manifest for the platform (for an index, of the entry chosen).
    pub manifest_digest: Digest,
    pub config_digest: Digest,
    /// Directories ready as overlayfs lowerdirs, lowest first. A layer that the image lists twice is here once, at its
    /// highest place, which means the same and which overlayfs insists on. Empty for an image without layers.
    pub layers: Vec<PathBuf>,
    /// As the config lists them, lowest first.
    pub diff_ids: Vec<Digest>,
    pub config: ImageConfig,
    /// Unpacked file data in bytes.
    pub size: u64,
    /// Compressed layers in bytes.
    pub compressed_size: u64,
    record: Arc<ImageRecord>,
    _pinned: Pinned,
}

impl Image {
    /// The diff ids behind [`Self::layers`].
    pub(super) fn distinct_layers(&self) -> Vec<Digest> {
        self.record.distinct_layers()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("reference", &self.reference)
            .field("manifest", &self.manifest_digest)
            .finish()
    }
}

/// A line of [`ImageStore::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    pub scope: String,
    pub reference: String,
    pub platform: Platform,
    pub manifest_digest: Digest,
    /// Unpacked file data in bytes, layers shared with other images included.
    pub size: u64,
    pub layers: usize,
    pub last_used: SystemTime,
    /// Whether a lease keeps it.
    pub leased: bool,
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub references: usize,
    pub layers: usize,
    /// Estimate of the disk space freed.
    pub bytes: u64,
}

/// The images of this host. Cheap to clone; one process may have a directory open.
#[derive(Clone)]
pub struct ImageStore(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) disk: Disk,
    pub(super) registry: Registry,
    pub(super) options: ImageOptions,
    pub(super) pins: Pins,
    pub(super) pulls: Pulls,
    pub(super) builds: Builds,
    pub(super) upkeep: Mutex<Upkeep>,
    /// Held by [`Inner::sync`], never while the index is locked.
    pub(super) syncing: Mutex<()>,
    index: Mutex<Index>,
}

impl ImageStore {
    /// Opens the store in `root`, making it if need be, and removes what a kill or a power loss left unfinished.
    ///
    /// Blocks, for up to 30 seconds when another process has it. A rustls crypto provider must be installed.
    pub fn open(root: PathBuf, options: ImageOptions) -> Result<Self, OpenError> {
        let disk = Disk::open(&root)?;
        let registry = Registry::new(options.insecure_registries.clone(), &options.ca_certificates)?;
        let index = load(&disk).map_err(|source| OpenError::Io { what: "read", path: root, source })?;
        let store = Self(Arc::new(Inner {
            disk,
            registry,
            options,
            pins: Pins::default(),
            pulls: Pulls::default(),
            builds: Builds::default(),
            index: Mutex::new(index),
            upkeep: Mutex::default(),
            syncing: Mutex::default(),
        }));
        store.0.upkeep_later();
        Ok(store)
    }

    /// The image that `reference` led to when it was last pulled in `scope` for this host's platform. Asks no registry.
    pub fn lookup(&self, scope: &str, reference: &str) -> Option<Arc<Image>> {
        let reference = reference.parse::<super::Reference>().ok()?.to_string();
        let index = self.0.index();
        let names = index.refs.iter().filter(|(name, _)| {
            name.scope == scope && name.reference == reference && name.platform == Platform::host()
        });
        let (name, _) = names.max_by_key(|(_, r)| r.used)?;
        let (_, record) = index.resolve(name)?;
        Some(self.0.image(&index, &name.reference, record))
    }

    /// Every reference in the store, the one used last first.
    pub fn list(&self) -> Vec<ImageSummary> {
        let index = self.0.index();
        let mut list: Vec<ImageSummary> = index
            .refs
            .iter()
            .filter_map(|(name, r)| {
                let (record, image) = index.resolve(name)?;
                Some(ImageSummary {
                    scope: name.scope.clone(),
                    reference: name.reference.clone(),
                    platform: name.platform,
                    manifest_digest: record.manifest_digest,
                    size: unpacked_bytes(&index, image),
                    layers: image.diff_ids.len(),
                    last_used: r.used,
                    leased: index.is_leased(record.manifest_digest),
                })
            })
            .collect();
        list.sort_by_key(|summary| std::cmp::Reverse(summary.last_used));
        list
    }

    /// Forgets `reference` in `scope`, and removes what no other reference, lease or live [`Image`] needs. The count of
    /// references in the answer is 0 when there was none.
    pub async fn remove(&self, scope: &str, reference: &str) -> io::Result<Collected> {
        let Ok(reference) = reference.parse::<super::Reference>() else { return Ok(Collected::default()) };
        let (inner, scope, reference) = (self.0.clone(), scope.to_owned(), reference.to_string());
        run_blocking(move || inner.remove(&scope, &reference)).await
    }

    /// Removes images that nobody uses, least recently used first, until the store is within its disk budget.
    pub async fn gc(&self) -> io::Result<Collected> {
        let inner = self.0.clone();
        run_blocking(move || inner.collect_to_budget()).await
    }

    /// Estimate of the disk space that all layers use, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.0.index().disk_bytes()
    }

    /// Keeps `image` in the store until [`Self::release`], over restarts too. One owner may lease several images.
    pub fn lease(&self, image: &Image, owner: &str) -> io::Result<()> {
        let mut index = self.0.index();
        // It may have been removed by name since it was pulled.
        self.0.keep_image(&mut index, &image.record)?;
        let leased =
            LeasedImage { reference: image.reference.clone(), manifest_digest: image.manifest_digest };
        let mut lease = index
            .leases
            .get(owner)
            .cloned()
            .unwrap_or_else(|| LeaseRecord { owner: owner.to_owned(), images: Vec::new() });
        if lease.images.contains(&leased) {
            return Ok(());
        }
        lease.images.push(leased);
        self.0.disk.put(Records::Leases, &lease_key(owner), &lease)?;
        index.leases.insert(owner.to_owned(), lease);
        Ok(())
    }

    /// Ends all leases of `owner`; to end none is no error.
    pub fn release(&self, owner: &str) -> io::Result<()> {
        let mut index = self.0.index();
        self.0.disk.remove(Records::Leases, &lease_key(owner))?;
        index.leases.remove(owner);
        drop(index);
        // What it held may have been over the budget.
        self.0.upkeep_later();
        Ok(())
    }

    /// The images that `owner` leases.
    pub fn leased(&self, owner: &str) -> Vec<Arc<Image>> {
        let index = self.0.index();
        let Some(lease) = index.leases.get(owner) else { return Vec::new() };
        let images = lease.images.iter().filter_map(|leased| {
            let record = index.complete(leased.manifest_digest)?;
            Some(self.0.image(&index, &leased.reference, record))
        });
        images.collect()
    }

    /// Everyone who holds a lease: after a restart, those whose task is gone are to be released.
    pub fn lease_owners(&self) -> Vec<String> {
        self.0.index().leases.keys().cloned().collect()
    }

    /// Waits until all that was pulled so far would survive a power loss. Happens by itself after each pull.
    pub async fn flush(&self) -> io::Result<()> {
        let inner = self.0.clone();
        run_blocking(move || inner.sync()).await
    }
}

impl Inner {
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            bytes: self.options.layer_limit_bytes.min(self.options.image_limit_bytes),
            entries: self.options.layer_limit_entries,
            free_bytes: self.options.min_free_bytes,
        }
    }

    /// The image that `name` led to, if all of it is here; marks it as used.
    pub(super) fn cached(&self, name: &RefName) -> Option<(RefRecord, Arc<Image>)> {
        let mut index = self.index();
        let (record, image) = index.resolve(name)?;
        let found = (record.clone(), self.image(&index, &name.reference, image));
        if let Some(entry) = index.refs.get_mut(name) {
            entry.used = SystemTime::now();
            // Only the order of eviction after a restart depends on it.
            if let Err(error) = self.disk.touch(Records::Refs, &name.key(), entry.used) {
                tracing::debug!(%error, "cannot note an image's use");
            }
        }
        Some(found)
    }

    /// The image with this manifest, whatever it is called, if all of it is here and it runs on `platform`.
    pub(super) fn known(&self, manifest_digest: Digest, platform: Platform) -> Option<Arc<ImageRecord>> {
        self.index().complete(manifest_digest).filter(|image| image.platform == platform).cloned()
    }

    pub(super) fn has_layer(&self, diff_id: Digest) -> bool {
        self.index().layers.contains_key(&diff_id)
    }

    /// Makes a verified layer part of the store.
    pub(super) fn add_layer(&self, diff_id: Digest, unpacked: Unpacked, staging: Staging) -> io::Result<()> {
        let mut index = self.index();
        if index.layers.contains_key(&diff_id) {
            return Ok(());
        }
        let record = self.disk.publish(staging, diff_id, unpacked.bytes, unpacked.disk_bytes)?;
        index.insert_layer(record, SystemTime::now());
        Ok(())
    }

    /// Makes an image part of the store, under a name. Its layers must be there and pinned. `None` when it unpacks to
    /// more than an image may.
    pub(super) fn add_image(
        &self,
        name: RefName,
        target: Digest,
        record: &Arc<ImageRecord>,
    ) -> io::Result<Option<Arc<Image>>> {
        let mut index = self.index();
        if unpacked_bytes(&index, record) > self.options.image_limit_bytes {
            return Ok(None);
        }
        self.keep_image(&mut index, record)?;
        let manifest_digest = record.manifest_digest;
        let reference = name.reference.clone();
        let entry = RefRecord { name: name.clone(), target_digest: target, manifest_digest };
        self.disk.put(Records::Refs, &name.key(), &entry)?;
        index.refs.insert(name, Ref { record: entry, used: SystemTime::now() });
        index.unsynced_records = true;
        Ok(Some(self.image(&index, &reference, record)))
    }

    fn keep_image(&self, index: &mut Index, record: &Arc<ImageRecord>) -> io::Result<()> {
        if let Entry::Vacant(entry) = index.images.entry(record.manifest_digest) {
            self.disk.put(Records::Manifests, &record.manifest_digest.hex(), record)?;
            entry.insert(record.clone());
            index.unsynced_records = true;
        }
        Ok(())
    }

    fn image(&self, index: &Index, reference: &str, record: &Arc<ImageRecord>) -> Arc<Image> {
        let layers = record.distinct_layers().into_iter().map(|id| self.disk.layer_root(id)).collect();
        Arc::new(Image {
            reference: reference.to_owned(),
            manifest_digest: record.manifest_digest,
            config_digest: record.config_digest,
            layers,
            diff_ids: record.diff_ids.clone(),
            config: record.config.clone(),
            size: unpacked_bytes(index, record),
            compressed_size: record.compressed_bytes,
            record: record.clone(),
            _pinned: self.pins.hold(record.diff_ids.iter().copied()),
        })
    }
}

fn unpacked_bytes(index: &Index, image: &ImageRecord) -> u64 {
    image.diff_ids.iter().filter_map(|id| index.layers.get(id)).map(|layer| layer.record.bytes).sum()
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Reads the index from disk, and drops records whose content did not survive.
fn load(disk: &Disk) -> io::Result<Index> {
    let mut index = Index::default();
    for (record, written) in disk.load_layers()? {
        index.insert_layer(record, written);
    }
    for (key, record, _) in disk.load::<ImageRecord>(Records::Manifests)? {
        let whole = record.diff_ids.iter().all(|id| index.layers.contains_key(id));
        if whole && key == record.manifest_digest.hex() {
            index.images.insert(record.manifest_digest, Arc::new(record));
        } else {
            disk.remove(Records::Manifests, &key)?;
        }
    }
    for (key, record, used) in disk.load::<RefRecord>(Records::Refs)? {
        if index.images.contains_key(&record.manifest_digest) && key == record.name.key() {
            index.refs.insert(record.name.clone(), Ref { record, used });
        } else {
            disk.remove(Records::Refs, &key)?;
        }
    }
    for (key, mut lease, _) in disk.load::<LeaseRecord>(Records::Leases)? {
        lease.images.retain(|image| index.images.contains_key(&image.manifest_digest));
        if lease.images.is_empty() || key != lease_key(&lease.owner) {
            disk.remove(Records::Leases, &key)?;
        } else {
            index.leases.insert(lease.owner.clone(), lease);
        }
    }
    Ok(index)
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore").field("root", &self.0.disk.root()).finish()
    }
}
