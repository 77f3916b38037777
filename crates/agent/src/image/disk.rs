//! The image store on disk, and what makes it survive a kill or a power loss at any moment.
//!
//! ```text
//! <root>/lock                       held (flock) by the process that has the store open
//!        layers/<diff id>/fs        an unpacked layer, ready as overlayfs lowerdir
//!        layers/<diff id>/layer.json
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
//! **Records** (manifests, refs) are replaced atomically, and made durable by the same `syncfs`; an fsync of each would
//! have the file system's journal wait for the layers' data. One that cannot be read, or that names a layer that is gone,
//! is dropped: that costs a pull, never a wrong image. **Leases** need no durability at all: after a power loss no task
//! runs that could hold one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
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
        let record = LayerRecord { diff_id, bytes, disk_bytes, synced: false, boot: self.0.boot.clone() };
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
        let record: LayerRecord = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        let written = fs::metadata(&file).ok()?.modified().ok()?;
        let named_right = path.file_name()?.as_bytes() == record.diff_id.hex().as_bytes();
        let trusted = record.synced || (!record.boot.is_empty() && record.boot == self.0.boot);
        let present = path.join("fs").is_dir();
        (named_right && trusted && present).then_some((record, written))
    }

    /// Makes everything written so far durable. Blocks for as long as the disk takes.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0.root_fd)?)
    }

    /// Marks a layer whose files are durable as such; the mark itself is after the next [`Self::sync`].
    pub(crate) fn mark_synced(&self, layer: &LayerRecord) -> io::Result<LayerRecord> {
        let record = LayerRecord { synced: true, ..layer.clone() };
        self.replace(&self.layer(layer.diff_id).join("layer.json"), &serde_json::to_vec(&record)?)?;
        Ok(record)
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
