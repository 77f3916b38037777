//! What this host was told and how far it got, on disk.
//!
//! One file per task and one for the generation, each replaced atomically (write, rename). They are
//! not synced: they must survive the agent, not the machine. After a restart of the machine nothing
//! runs any more, the ledger is thrown away, and control ends the tasks it had seen here (the
//! host's incarnation, [`Ledger::incarnation`], has changed).

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use link::TaskAssignment;
use model::observation::Observation;
use model::{HostId, TaskId};
use serde::{Deserialize, Serialize};

use crate::net::TaskLink;
use crate::sandbox::microvm::Size;
use crate::sandbox::template::Programs;
use crate::slot::SlotRecord;

/// One task as the ledger knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub assignment: Arc<TaskAssignment>,
    /// The sandbox it runs in, once one is chosen.
    pub slot: Option<SlotRecord>,
    /// Nothing of the task has run in that sandbox, which is being taken off the host: that it has ended says
    /// nothing of the task.
    #[serde(default)]
    pub unused: bool,
    /// What its microVM is made of, once that is known.
    #[serde(default)]
    pub machine: Option<MachineRecord>,
    /// Its network attachment, once made.
    pub link: Option<TaskLink>,
    /// The last observation that was reported.
    pub observation: Option<Observation>,
}

/// What a snapshot of a microVM must note beside the machine itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    pub size: Size,
    pub programs: Programs,
    /// The parts of its disk of layers.
    pub layers: Vec<PathBuf>,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
}

#[derive(Serialize, Deserialize)]
struct Identity {
    host: HostId,
    /// Drawn anew when the directory is made.
    token: String,
    boot_id: String,
}

/// The ledger's directory.
#[derive(Clone, Debug)]
pub struct Ledger {
    dir: PathBuf,
    host: HostId,
    incarnation: String,
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}

impl Ledger {
    /// Opens the ledger below `dir`, made if missing (mode 0700: assignments carry credentials).
    ///
    /// # Errors
    /// The directory cannot be used, or a file in it is damaged.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        let tasks = dir.join("tasks");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&tasks)
            .map_err(at("create", &tasks))?;
        let boot_path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = std::fs::read_to_string(boot_path).map_err(at("read", boot_path))?.trim().to_owned();
        let identity_path = dir.join("identity.json");
        let mut identity = match read::<Identity>(&identity_path)? {
            Some(identity) => identity,
            None => {
                let token = format!("{:016x}", rand::random::<u64>());
                let host = HostId::parse(format!("host-{token}")).map_err(|error| LedgerError::Io {
                    action: "name",
                    path: identity_path.clone(),
                    source: io::Error::other(error),
                })?;
                Identity { host, token, boot_id: String::new() }
            }
        };
        if identity.boot_id != boot_id {
            for task in list(&tasks)? {
                std::fs::remove_file(&task).map_err(at("remove", &task))?;
            }
            identity.boot_id = boot_id;
            write(&identity_path, &identity)?;
        }
        let incarnation = format!("{}-{}", identity.token, identity.boot_id);
        Ok(Self { dir: dir.to_owned(), host: identity.host, incarnation })
    }

    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// Changes when what was assigned before is gone: a restarted machine, or a new directory.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The last generation that was applied.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn generation(&self) -> Result<u64, LedgerError> {
        Ok(read(&self.dir.join("generation.json"))?.unwrap_or(0))
    }

    /// # Errors
    /// The file cannot be written.
    pub fn set_generation(&self, generation: u64) -> Result<(), LedgerError> {
        write(&self.dir.join("generation.json"), &generation)
    }

    /// # Errors
    /// A file cannot be read or is damaged.
    pub fn entries(&self) -> Result<Vec<Entry>, LedgerError> {
        let paths = list(&self.dir.join("tasks"))?;
        paths.iter().filter_map(|path| read(path).transpose()).collect()
    }

    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, entry: &Entry) -> Result<(), LedgerError> {
        write(&self.path(&entry.assignment.task), entry)
    }

    /// Forgets a task; one that is not there is no error.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, task: &TaskId) -> Result<(), LedgerError> {
        let path = self.path(task);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at("remove", &path)),
        }
    }

    fn path(&self, task: &TaskId) -> PathBuf {
        self.dir.join("tasks").join(format!("{task}.json"))
    }
}

/// The finished files of a directory; unfinished ones, of a writer that was killed, are removed.
fn list(dir: &Path) -> Result<Vec<PathBuf>, LedgerError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at("read", dir))? {
        let path = entry.map_err(at("read", dir))?.path();
        if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        } else {
            std::fs::remove_file(&path).map_err(at("remove", &path))?;
        }
    }
    paths.sort();
    Ok(paths)
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, LedgerError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| LedgerError::Damaged { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LedgerError::Io { action: "read", path: path.to_owned(), source }),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LedgerError> {
    let new = path.with_extension("new");
    let bytes =
        serde_json::to_vec(value).map_err(|source| LedgerError::Damaged { path: path.to_owned(), source })?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(at("create", &new))?;
    file.write_all(&bytes).map_err(at("write", &new))?;
    std::fs::rename(&new, path).map_err(at("replace", path))
}
