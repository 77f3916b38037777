//! The state directory: where a server keeps everything, and how commands find the server.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// Used when neither `--state-dir` nor `CORACLE_STATE_DIR` is given.
pub const DEFAULT: &str = "/var/lib/coracle";

/// What a running server tells the commands; `endpoint.json` in the state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub url: String,
    pub account: String,
    pub region: String,
    pub subnet: String,
    pub security_group: String,
    /// `host:port` in image references, for the built-in registry.
    pub registry: String,
    pub pid: u32,
    pub ephemeral: bool,
}

/// The directory, locked for one server.
pub struct StateDir {
    path: PathBuf,
    /// The lock lasts as long as this file is open; the kernel drops it with the process.
    _lock: File,
}

impl StateDir {
    /// Makes the directory (mode 0700) if missing, and locks it.
    pub fn lock(path: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot create the state directory {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "another Coracle{} uses the state directory {}; stop it, or give this one its own with --state-dir",
                running_pid(&path),
                path.display()
            ),
            Err(error) => {
                Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", lock_path.display()))
            }
        }
    }

    /// Marks a directory whose content may be thrown away. Refuses one that holds a server's
    /// lasting state. Says whether an earlier ephemeral server left something in it.
    pub fn make_ephemeral(&self) -> anyhow::Result<bool> {
        let marker = self.join("ephemeral");
        let left_over = self.join("state.db").exists();
        if !marker.exists() && !left_over && self.holds_foreign_files()? {
            bail!(
                "{} holds files that are not Coracle's, and --ephemeral would remove them; give another --state-dir",
                self.path.display()
            );
        }
        if left_over && !marker.exists() {
            bail!(
                "{} holds the state of a Coracle that is not ephemeral, and --ephemeral would remove it; \
                 give another --state-dir",
                self.path.display()
            );
        }
        std::fs::write(&marker, b"").with_context(|| format!("cannot write {}", marker.display()))?;
        Ok(left_over)
    }

    /// Whether there is something that no server put there.
    fn holds_foreign_files(&self) -> anyhow::Result<bool> {
        let entries =
            std::fs::read_dir(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(entries.flatten().any(|entry| !entry.file_name().to_str().is_some_and(is_ours)))
    }

    pub fn is_ephemeral(&self) -> bool {
        self.join("ephemeral").exists()
    }

    /// Removes what a server keeps here, and the directory unless something else is in it.
    pub fn remove(self) -> anyhow::Result<()> {
        let cannot = |path: &Path| format!("cannot remove {}", path.display());
        for entry in std::fs::read_dir(&self.path).with_context(|| cannot(&self.path))?.flatten() {
            let path = entry.path();
            if !entry.file_name().to_str().is_some_and(is_ours) {
                continue;
            }
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
                _ => std::fs::remove_file(&path),
            };
            removed.with_context(|| cannot(&path))?;
        }
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(error).with_context(|| cannot(&self.path))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a directory that an ephemeral server left behind.
    pub fn refuse_ephemeral(&self) -> anyhow::Result<()> {
        if self.is_ephemeral() {
            bail!(
                "{} was left by an ephemeral Coracle that did not end properly; start it once more with --ephemeral \
                 to remove what it left, or give another --state-dir",
                self.path.display()
            );
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Tells commands where the server is. Replaced atomically.
    pub fn publish(&self, endpoint: &Endpoint) -> anyhow::Result<()> {
        let path = self.join("endpoint.json");
        let new = self.join("endpoint.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(endpoint)?)?;
            std::fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Takes the notice down again: no server runs.
    pub fn unpublish(&self) {
        // A notice that stays is recognised by its pid.
        drop(std::fs::remove_file(self.join("endpoint.json")));
    }
}

/// Whether a server keeps a file or directory of this name in its state directory.
fn is_ours(name: &str) -> bool {
    const NAMES: [&str; 8] =
        ["agent", "credentials", "endpoint.json", "endpoint.new", "ephemeral", "lock", "logs", "registry"];
    // SQLite's journals are `state.db-wal` and `state.db-shm`.
    NAMES.contains(&name) || name.starts_with("state.db")
}

fn running_pid(path: &Path) -> String {
    read_endpoint(path).map(|e| format!(" (pid {})", e.pid)).unwrap_or_default()
}

/// The notice of the server that has this state directory.
pub fn read_endpoint(path: &Path) -> anyhow::Result<Endpoint> {
    let file = path.join("endpoint.json");
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "no Coracle runs with the state directory {}; start one with `coracle up`, or name its directory with \
             --state-dir or CORACLE_STATE_DIR",
            path.display()
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))
}
