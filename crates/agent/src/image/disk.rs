//! The image store on disk, and what makes it survive a kill or a power loss at any moment.
//!
//! ```text
//! <root>/lock                       held (flock) by the process that has the store open
//!        layers/<diff id>/fs        an unpacked layer, ready as overlayfs lowerdir
//!        layers/<diff id>/layer.json
//!        layers/<diff id>/layer.erofs   the layer as a file system image, once a microVM wanted it
//!        manifests/<digest>.json    an image: its layers and config
//!        refs/<key>.json            a reference, and the manifest it led to; mtime is its last use
//!        leases/<key>.json          an owner, and the images it uses
//!        tmp/                       everything unfinished; emptied by open
//! ```
//!
//! **Layers.** A layer is unpacked in `tmp`, verified, given its `layer.json`, and renamed into `layers`: after a kill a
//! layer in `layers` is complete, since the page cache outlives the process. It does not outlive the machine, and waiting
//! for the disk would cost a pull more than all the rest. So `layer.json` first says "not synced, written in boot B"; the
//! store's upkeep, in the background, calls `syncfs`, then writes "synced", then calls `syncfs` again. Open takes a layer
//! that is synced or of this very boot, and removes all others: they were caught by a power loss.
//!
//! **Layers' images** come later, in the same way: made in `tmp`, renamed to their layer, then written into `layer.json`,
//! as not synced at first. One that `layer.json` does not vouch for is removed, and made again when it is asked for.
//!
//! **Records** (manifests, refs) are replaced atomically, and made durable by the same `syncfs`; an fsync of each would
//! have the file system's journal wait for the layers' data. One that cannot be read, or that names a layer that is gone,
//! is dropped: that costs a pull, never a wrong image. **Leases** need no durability at all: after a power loss no task
//! runs that could hold one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// How long open waits for a process that is just going away: a killed one keeps its lock until its `syncfs` returns.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("image store {0} is in use by another process")]
    Locked(PathBuf),
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The HTTP client cannot be made: most likely no TLS provider was installed.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// A given certificate is not PEM.
    #[error("invalid CA certificate")]
    Certificate(#[source] reqwest::Error),
}

/// `layers/<diff id>/layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    /// File data in bytes.
    pub(crate) bytes: u64,
    /// Estimate of the disk space used, in bytes.
    pub(crate) disk_bytes: u64,
    pub(crate) synced: bool,
    /// The boot in which it was written.
    pub(crate) boot: String,
    /// `layer.erofs`, if there is one.
    #[serde(default)]
    pub(crate) erofs: Option<ErofsRecord>,
}

/// What `layer.json` says of `layer.erofs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErofsRecord {
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// The disk space that it uses, in bytes.
    pub(crate) disk_bytes: u64,
    pub(crate) synced: bool,
    /// The boot in which it was written.
    pub(crate) boot: String,
}

impl LayerRecord {
    /// Of the layer and its image.
    pub(crate) fn all_disk_bytes(&self) -> u64 {
        self.disk_bytes + self.erofs.as_ref().map_or(0, |erofs| erofs.disk_bytes)
    }

    /// Whether the layer and its image are durable.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced && self.erofs.as_ref().is_none_or(|erofs| erofs.synced)
    }
}

/// A kind of record: one directory of JSON files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Records {
    Manifests,
    Refs,
    Leases,
}

impl Records {
    fn directory(self) -> &'static str {
        match self {
            Self::Manifests => "manifests",
            Self::Refs => "refs",
            Self::Leases => "leases",
        }
    }
}

/// The open directory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Inner>);

struct Inner {
    root: PathBuf,
    /// For `syncfs` and `fstatvfs`.
    root_fd: File,
    boot: String,
    names: AtomicU64,
    _lock: File,
}

/// An unfinished layer: a directory below `tmp` that is removed when dropped.
pub(crate) struct Staging {
    path: PathBuf,
    published: bool,
}

impl Staging {
    /// Where the layer's files go.
    pub(crate) fn layer_root(&self) -> PathBuf {
        self.path.join("fs")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            remove_tree(&self.path);
        }
    }
}

/// An unfinished file in `tmp` that is removed when dropped.
pub(crate) struct StagedFile {
    path: PathBuf,
    file: File,
    published: bool,
}

impl StagedFile {
    /// Open for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            // Not worth an error: open empties `tmp`.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Disk {
    /// Opens or makes the directory, and removes all that is unfinished.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { what, path, source }
        };
        // Nobody else of the host may come here: layers hold setuid files.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(fail("make", root))?;
        let root = &root.canonicalize().map_err(fail("resolve", root))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(fail("set mode of", root))?;
        let lock = lock(root)?;
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).map_err(fail("empty", &tmp))?;
        }
        for name in ["layers", "manifests", "refs", "leases", "tmp"] {
            let path = root.join(name);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(fail("make", &path))?;
        }
        let root_fd = File::open(root).map_err(fail("open", root))?;
        // Without it no unsynced layer is trusted, which only costs a download.
        let boot =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Ok(Self(Arc::new(Inner { root: root.clone(), root_fd, boot, names: AtomicU64::new(0), _lock: lock })))
    }

    /// The store's directory, as an absolute path.
    pub(crate) fn root(&self) -> &Path {
        &self.0.root
    }

    /// The directory of an unpacked layer.
    pub(crate) fn layer_root(&self, diff_id: Digest) -> PathBuf {
        self.layer(diff_id).join("fs")
    }

    /// The image of a layer.
    pub(crate) fn layer_erofs(&self, diff_id: Digest) -> PathBuf {
        self.layer(diff_id).join("layer.erofs")
    }

    fn layer(&self, diff_id: Digest) -> PathBuf {
        self.0.root.join("layers").join(diff_id.hex())
    }

    fn scratch(&self) -> PathBuf {
        self.0.root.join("tmp").join(self.0.names.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// A new, empty staging directory.
    pub(crate) fn stage(&self) -> io::Result<Staging> {
        let staging = Staging { path: self.scratch(), published: false };
        fs::DirBuilder::new().mode(0o700).create(&staging.path)?;
        fs::create_dir(staging.layer_root())?;
        // Of a layer without an entry for its root; and not subject to the umask.
        fs::set_permissions(staging.layer_root(), fs::Permissions::from_mode(0o755))?;
        Ok(staging)
    }

    /// Makes a complete, verified layer visible. Durable only after the next [`Self::sync`].
    pub(crate) fn publish(
        &self,
        mut staging: Staging,
        diff_id: Digest,
        bytes: u64,
        disk_bytes: u64,
    ) -> io::Result<LayerRecord> {
        let boot = self.0.boot.clone();
        let record = LayerRecord { diff_id, bytes, disk_bytes, synced: false, boot, erofs: None };
        fs::write(staging.path.join("layer.json"), serde_json::to_vec(&record)?)?;
        let target = self.layer(diff_id);
        match fs::rename(&staging.path, &target) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                // Not in the index, so of unknown worth; this one is verified.
                self.discard(&target)?;
                fs::rename(&staging.path, &target)?;
            }
            other => other?,
        }
        staging.published = true;
        Ok(record)
    }

    /// A new, empty file.
    pub(crate) fn stage_file(&self) -> io::Result<StagedFile> {
        let path = self.scratch();
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(&path)?;
        Ok(StagedFile { path, file, published: false })
    }

    /// Makes a complete file the image of a layer. Durable only after the next [`Self::sync`].
    pub(crate) fn publish_erofs(
        &self,
        mut staged: StagedFile,
        layer: &LayerRecord,
        bytes: u64,
    ) -> io::Result<LayerRecord> {
        let disk_bytes = staged.file.metadata()?.blocks() * 512;
        let erofs = ErofsRecord { bytes, disk_bytes, synced: false, boot: self.0.boot.clone() };
        let record = LayerRecord { erofs: Some(erofs), ..layer.clone() };
        fs::rename(&staged.path, self.layer_erofs(layer.diff_id))?;
        staged.published = true;
        // Should this fail, the file is there to no effect: the next build replaces it, or open removes it.
        self.write_layer(&record)?;
        Ok(record)
    }

    /// Every complete layer; what is not complete is removed.
    pub(crate) fn load_layers(&self) -> io::Result<Vec<(LayerRecord, SystemTime)>> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.0.root.join("layers"))? {
            let path = entry?.path();
            match self.load_layer(&path) {
                Some(layer) => layers.push(layer),
                None => {
                    tracing::warn!(path = %path.display(), "removing an incomplete layer");
                    self.discard(&path)?;
                }
            }
        }
        Ok(layers)
    }

    fn load_layer(&self, path: &Path) -> Option<(LayerRecord, SystemTime)> {
        let file = path.join("layer.json");
        let mut record: LayerRecord = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        let written = fs::metadata(&file).ok()?.modified().ok()?;
        let named_right = path.file_name()?.as_bytes() == record.diff_id.hex().as_bytes();
        let trusted = self.is_trusted(record.synced, &record.boot);
        let present = path.join("fs").is_dir();
        if !(named_right && trusted && present) {
            return None;
        }
        self.check_erofs(&mut record).ok()?;
        Some((record, written))
    }

    /// Whether what is in the page cache or on the disk is what was written.
    fn is_trusted(&self, synced: bool, boot: &str) -> bool {
        synced || (!boot.is_empty() && boot == self.0.boot)
    }

    /// Removes the layer's image and its mention unless both are whole.
    fn check_erofs(&self, record: &mut LayerRecord) -> io::Result<()> {
        let path = self.layer_erofs(record.diff_id);
        let length = fs::symlink_metadata(&path).ok().map(|metadata| metadata.len());
        let whole = record
            .erofs
            .as_ref()
            .is_some_and(|erofs| length == Some(erofs.bytes) && self.is_trusted(erofs.synced, &erofs.boot));
        if whole {
            return Ok(());
        }
        if record.erofs.take().is_some() {
            self.write_layer(record)?;
        }
        if length.is_some() { fs::remove_file(&path) } else { Ok(()) }
    }

    /// Makes everything written so far durable. Blocks for as long as the disk takes.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0.root_fd)?)
    }

    /// Marks a layer whose files are durable as such, and its image if that is; the mark itself is after the next
    /// [`Self::sync`].
    pub(crate) fn mark_synced(&self, layer: &LayerRecord, with_erofs: bool) -> io::Result<LayerRecord> {
        let mut record = LayerRecord { synced: true, ..layer.clone() };
        if let Some(erofs) = &mut record.erofs {
            erofs.synced |= with_erofs;
        }
        self.write_layer(&record)?;
        Ok(record)
    }

    fn write_layer(&self, record: &LayerRecord) -> io::Result<()> {
        self.replace(&self.layer(record.diff_id).join("layer.json"), &serde_json::to_vec(record)?)
    }

    /// Takes a layer out of sight, atomically. Gives what [`Self::delete`] then removes.
    pub(crate) fn hide_layer(&self, diff_id: Digest) -> io::Result<PathBuf> {
        self.hide(&self.layer(diff_id))
    }

    fn hide(&self, path: &Path) -> io::Result<PathBuf> {
        let hidden = self.scratch();
        fs::rename(path, &hidden)?;
        Ok(hidden)
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        remove_tree(&self.hide(path)?);
        Ok(())
    }

    /// Removes hidden layers. Blocks; a crash leaves the work to the next open.
    pub(crate) fn delete(hidden: &[PathBuf]) {
        for path in hidden {
            remove_tree(path);
        }
    }

    /// Writes a record, atomically. Durable after the next [`Self::sync`].
    pub(crate) fn put<T: Serialize>(&self, kind: Records, key: &str, record: &T) -> io::Result<()> {
        self.replace(&self.record(kind, key), &serde_json::to_vec(record)?)
    }

    /// Removes a record, if there is one.
    pub(crate) fn remove(&self, kind: Records, key: &str) -> io::Result<()> {
        match fs::remove_file(self.record(kind, key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Remembers that a record was used now, as its file's time.
    pub(crate) fn touch(&self, kind: Records, key: &str, at: SystemTime) -> io::Result<()> {
        File::open(self.record(kind, key))?.set_modified(at)
    }

    /// All records of a kind with their keys and last uses; those that cannot be read are removed.
    pub(crate) fn load<T: DeserializeOwned>(
        &self,
        kind: Records,
    ) -> io::Result<Vec<(String, T, SystemTime)>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.0.root.join(kind.directory()))? {
            let path = entry?.path();
            let loaded = (|| {
                let key = path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
                let used = fs::metadata(&path).ok()?.modified().ok()?;
                Some((key, serde_json::from_slice(&fs::read(&path).ok()?).ok()?, used))
            })();
            match loaded {
                Some(record) => records.push(record),
                None => {
                    tracing::warn!(path = %path.display(), "removing an unreadable record");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(records)
    }

    /// Bytes of the file system that may still be used.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.0.root_fd)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn record(&self, kind: Records, key: &str) -> PathBuf {
        self.0.root.join(kind.directory()).join(format!("{key}.json"))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let scratch = self.scratch();
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch)?;
        let replaced = file.write_all(content).and_then(|()| fs::rename(&scratch, path));
        if replaced.is_err() {
            // Not worth an error of its own: open empties `tmp`.
            let _ = fs::remove_file(&scratch);
        }
        replaced
    }
}

fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let io = |source| OpenError::Io { what: "lock", path: path.clone(), source };
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked(root.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(io(error)),
        }
    }
}

/// Unpacking bounds the depth, so that this needs few descriptors.
fn remove_tree(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove; the next open will");
    }
}
