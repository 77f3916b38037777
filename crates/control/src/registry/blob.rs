//! Blobs on disk: one file per content, named by its SHA-256 digest, shared by all repositories.
//!
//! A file appears under its name only complete, verified and on stable storage: it is written
//! elsewhere in the same directory tree, synced, renamed, and the directory synced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::name::Digest;

/// The directory of blobs: `<root>/blobs/sha256/<first two digits>/<64 digits>`.
#[derive(Debug, Clone)]
pub struct BlobFiles {
    blobs: PathBuf,
    incoming: PathBuf,
}

impl BlobFiles {
    /// Opens or makes the directory under `root`, and throws away what a crash left half-written.
    pub fn open(root: &Path) -> io::Result<Self> {
        let files = Self { blobs: root.join("blobs").join("sha256"), incoming: root.join("incoming") };
        fs::create_dir_all(&files.blobs)?;
        for first in 0..=u8::MAX {
            match fs::create_dir(files.blobs.join(hex::encode([first]))) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir_all(&files.incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&files.incoming)?;
        sync_directory(&files.blobs)?;
        sync_directory(&root.join("blobs"))?;
        sync_directory(root)?;
        Ok(files)
    }

    /// Where the blob's file is. A digest has no path separators.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs.join(&hex[..2]).join(&hex)
    }

    /// Makes the file at `from`, whose content has this digest and is synced, the blob. A blob that
    /// is there already stays, and `from` is removed. Blocking.
    pub fn adopt(&self, from: &Path, digest: &Digest) -> io::Result<()> {
        let path = self.path(digest);
        if path.try_exists()? {
            return fs::remove_file(from);
        }
        fs::rename(from, &path)?;
        sync_directory(path.parent().unwrap_or(&self.blobs))
    }

    /// Stores a small blob (a manifest) whole. Blocking.
    pub fn put(&self, bytes: &[u8], digest: &Digest) -> io::Result<()> {
        if self.path(digest).try_exists()? {
            return Ok(());
        }
        let temporary = self.incoming.join(uuid::Uuid::new_v4().to_string());
        let written = (|| {
            let mut file = File::create_new(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            self.adopt(&temporary, digest)
        })();
        if written.is_err() {
            // Best effort: the next start empties the directory anyway.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Removes the blob's file; one that is not there is fine. Blocking.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The blobs whose digests begin with byte `first`, with their lengths in bytes. Blocking.
    pub fn list(&self, first: u8) -> io::Result<Vec<(Digest, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.blobs.join(hex::encode([first])))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(digest) = name.to_str().and_then(|name| format!("sha256:{name}").parse().ok()) else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) => found.push((digest, metadata.len())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Makes renames and creations in `directory` durable. Blocking.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
