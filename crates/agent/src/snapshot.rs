//! The snapshots of tasks that this host keeps.
//!
//! ```text
//! DIR/<id>/state, memory   the machine, as its monitor wrote it down
//!          scratch         a copy of the task's disk at that moment
//!          layers/0, 1, …  the image layers: other names of the image store's files
//!          snapshot.json   what it is a snapshot of, and of which programs
//! ```
//! A snapshot gets its name when all of it is on the disk. What has another name was being made
//! when its agent was killed, and is removed by the next one. Calls block, unless they say otherwise.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use model::snapshot::{SnapshotReport, SnapshotStatus};
use model::{SnapshotId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::memory_sum;
use crate::sandbox::microvm::Size;
use crate::sandbox::template::Programs;
use crate::scratch::copy_sparse;

const DESCRIPTION: &str = "snapshot.json";
const LAYERS: &str = "layers";
/// A snapshot is not begun when less than this would be left of the disk, in bytes.
const RESERVE: u64 = 512 << 20;

/// Why a snapshot cannot be made, kept or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the snapshot may take {need} MiB, and the host's disk has {free} MiB free")]
    NoSpace { need: u64, free: u64 },
    #[error("this host does not have the snapshot (any more)")]
    Missing,
    #[error("the snapshot {0}")]
    DoesNotFit(String),
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { action, path, source }
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub id: SnapshotId,
    pub task: TaskId,
    pub size: Size,
    pub programs: Programs,
    /// Container names and their images' digests.
    pub images: Vec<(String, Option<String>)>,
    /// How many files of layers there are, in the order in which the machine has them.
    pub layers: usize,
    pub ephemeral_storage_gib: u32,
    /// Bytes in all: a file of another length is not this snapshot's.
    pub memory_length: u64,
    pub scratch_length: u64,
    /// [`memory_sum::of`] the memory.
    pub memory_sum: u32,
    /// Bytes on the disk.
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub made_at: Timestamp,
    pub paused_ms: u64,
}

impl Description {
    #[must_use]
    pub fn report(&self) -> SnapshotReport {
        SnapshotReport {
            id: self.id.clone(),
            status: SnapshotStatus::Ready,
            reason: None,
            made_at: Some(self.made_at),
            paused_ms: self.paused_ms,
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
        }
    }

    /// Whether a task of this size can go on from it with these programs.
    ///
    /// # Errors
    /// It cannot, in words for `stoppedReason`.
    pub fn check(
        &self,
        programs: &Programs,
        size: Size,
        ephemeral_storage_gib: u32,
    ) -> Result<(), SnapshotError> {
        let other = |what: &str| Err(SnapshotError::DoesNotFit(format!("was made with another {what}")));
        if self.programs.monitor != programs.monitor {
            return other("microVM monitor; make a new one");
        }
        if self.programs.kernel != programs.kernel {
            return other("guest kernel; make a new one");
        }
        if self.programs.initramfs != programs.initramfs {
            return other("supervisor, or other kernel modules; make a new one");
        }
        if self.size != size || self.ephemeral_storage_gib != ephemeral_storage_gib {
            return Err(SnapshotError::DoesNotFit("is of a task of another size".to_owned()));
        }
        Ok(())
    }
}

/// The directory of all snapshots.
#[derive(Debug)]
pub struct Snapshots {
    dir: PathBuf,
    /// Those that are being made.
    making: Mutex<BTreeSet<SnapshotId>>,
    /// Those whose memory this agent has seen to be whole.
    verified: Mutex<BTreeSet<SnapshotId>>,
}

impl Snapshots {
    /// Opens the directory, made where needed (mode 0700: memory and disks of tenants), and removes
    /// what was being made.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(dir: PathBuf) -> Result<Arc<Self>, SnapshotError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at("create", &dir))?;
        let snapshots = Self { dir, making: Mutex::default(), verified: Mutex::default() };
        for (path, id) in snapshots.entries()? {
            if id.is_none() {
                fs::remove_dir_all(&path).map_err(at("remove", &path))?;
            }
        }
        Ok(Arc::new(snapshots))
    }

    fn entries(&self) -> Result<Vec<(PathBuf, Option<SnapshotId>)>, SnapshotError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(at("read", &self.dir))? {
            let entry = entry.map_err(at("read", &self.dir))?;
            let id = entry.file_name().to_str().and_then(|name| SnapshotId::parse(name).ok());
            found.push((entry.path(), id));
        }
        Ok(found)
    }

    /// Removes the snapshots that are not among `wanted`. A task that begins from one at this moment
    /// has its files open.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn keep_only(&self, wanted: &BTreeSet<SnapshotId>) -> Result<(), SnapshotError> {
        for (path, id) in self.entries()? {
            let Some(id) = id.filter(|id| !wanted.contains(id)) else { continue };
            tracing::info!(snapshot = %id, "removing a snapshot");
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            // Out of sight first: what a crash leaves of it is removed at the next start.
            let leaving = path.with_extension("gone");
            fs::rename(&path, &leaving).map_err(at("rename", &path))?;
            fs::remove_dir_all(&leaving).map_err(at("remove", &leaving))?;
        }
        Ok(())
    }

    /// What a snapshot is of, if it is there.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn describe(&self, id: &SnapshotId) -> Result<Option<Description>, SnapshotError> {
        let path = self.dir.join(id.as_str()).join(DESCRIPTION);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| SnapshotError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("read", &path)(error)),
        }
    }

    #[must_use]
    pub fn is_being_made(&self, id: &SnapshotId) -> bool {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    fn is_verified(&self, id: &SnapshotId) -> bool {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Begins to make a snapshot of a machine of that size and a disk; `None` when that has begun
    /// already.
    ///
    /// # Errors
    /// The disk has no room, or the directory cannot be written.
    pub fn begin(
        self: &Arc<Self>,
        id: &SnapshotId,
        size: Size,
        scratch: &Path,
    ) -> Result<Option<Draft>, SnapshotError> {
        if !self.making.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
            return Ok(None);
        }
        let dir = self.dir.join(format!("{id}.new"));
        // From here on, dropping it undoes everything.
        let draft = Draft { snapshots: self.clone(), id: id.clone(), dir, is_finished: false };
        let disk = fs::metadata(scratch).map_err(at("look at", scratch))?;
        let need = (u64::from(size.memory_mib) << 20) + disk.blocks() * 512 + RESERVE;
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| at("look at", &self.dir)(io::Error::from(error)))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < need {
            return Err(SnapshotError::NoSpace { need: need >> 20, free: free >> 20 });
        }
        fs::DirBuilder::new().mode(0o700).create(&draft.dir).map_err(at("create", &draft.dir))?;
        Ok(Some(draft))
    }

    /// Opens a snapshot to begin a task from it. Its memory is read for that once in an agent's life.
    ///
    /// # Errors
    /// It is not there, or not whole.
    pub fn open_saved(&self, id: &SnapshotId) -> Result<Saved, SnapshotError> {
        let description = self.describe(id)?.ok_or(SnapshotError::Missing)?;
        let dir = self.dir.join(id.as_str());
        let open = |name: &str, length: Option<u64>| {
            let path = dir.join(name);
            let file = File::open(&path).map_err(at("open", &path))?;
            let actual = file.metadata().map_err(at("look at", &path))?.len();
            if length.is_some_and(|length| length != actual) {
                return Err(SnapshotError::DoesNotFit(format!("is damaged: {name} has {actual} bytes")));
            }
            Ok(file)
        };
        let state = open("state", None)?;
        let memory = open("memory", Some(description.memory_length))?;
        open("scratch", Some(description.scratch_length))?;
        if !self.is_verified(id) {
            let sum = memory_sum::of(&memory).map_err(at("read", &dir.join("memory")))?;
            if sum != description.memory_sum {
                let damaged = "is damaged: the checksum of its memory does not hold";
                return Err(SnapshotError::DoesNotFit(damaged.to_owned()));
            }
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        }
        Ok(Saved { description, dir, state, memory })
    }
}

/// A snapshot that a task begins from.
#[derive(Debug)]
pub struct Saved {
    pub description: Description,
    dir: PathBuf,
    pub state: File,
    pub memory: File,
}

impl Saved {
    /// Makes `target`, a disk that nobody uses, a copy of the snapshot's.
    ///
    /// # Errors
    /// The copy cannot be made; then `target` is as it was.
    pub fn copy_scratch(&self, target: &Path) -> Result<(), SnapshotError> {
        let partial = target.with_extension("partial");
        let copied = copy_sparse(&self.dir.join("scratch"), &partial);
        copied.and_then(|()| fs::rename(&partial, target)).map_err(|error| {
            let _ = fs::remove_file(&partial);
            at("copy the disk to", target)(error)
        })
    }

    /// Gives the layers' files further names in `dir`, which last as long as the new task does.
    ///
    /// # Errors
    /// They cannot be named there.
    pub fn link_layers(&self, dir: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
        let from = self.dir.join(LAYERS);
        let paths: Vec<PathBuf> =
            (0..self.description.layers).map(|number| from.join(number.to_string())).collect();
        link_layers(&paths, dir)
    }
}

/// A snapshot being made.
#[derive(Debug)]
pub struct Draft {
    snapshots: Arc<Snapshots>,
    id: SnapshotId,
    dir: PathBuf,
    is_finished: bool,
}

impl Draft {
    /// Makes the two files that a monitor writes to.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn machine_files(&self) -> Result<(File, File), SnapshotError> {
        let create = |name: &str| {
            let path = self.dir.join(name);
            let file = File::options().read(true).write(true).create_new(true).open(&path);
            file.map_err(at("create", &path))
        };
        Ok((create("state")?, create("memory")?))
    }

    /// Where the copy of the task's disk goes.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// Adds the layers, writes everything to the disk, and gives the snapshot its name. The sizes in
    /// `description` are filled in.
    ///
    /// # Errors
    /// Something cannot be written; nothing is left then.
    pub fn finish(
        mut self,
        mut description: Description,
        layers: &[PathBuf],
    ) -> Result<Description, SnapshotError> {
        description.layers = link_layers(layers, &self.dir.join(LAYERS))?.len();
        for (name, length, bytes) in [
            ("state", None, None),
            ("memory", Some(&mut description.memory_length), Some(&mut description.memory_bytes)),
            ("scratch", Some(&mut description.scratch_length), Some(&mut description.disk_bytes)),
        ] {
            let path = self.dir.join(name);
            let file = File::open(&path).map_err(at("open", &path))?;
            file.sync_all().map_err(at("write", &path))?;
            let metadata = file.metadata().map_err(at("look at", &path))?;
            if let (Some(length), Some(bytes)) = (length, bytes) {
                (*length, *bytes) = (metadata.len(), metadata.blocks() * 512);
            }
        }
        let memory = self.dir.join("memory");
        let sum = File::open(&memory).and_then(|file| memory_sum::of(&file));
        description.memory_sum = sum.map_err(at("read", &memory))?;
        let path = self.dir.join(DESCRIPTION);
        let json = serde_json::to_vec_pretty(&description)
            .map_err(|source| SnapshotError::Damaged { path: path.clone(), source })?;
        fs::write(&path, json).map_err(at("write", &path))?;
        for path in [path, self.dir.join(LAYERS), self.dir.clone()] {
            File::open(&path).and_then(|file| file.sync_all()).map_err(at("write", &path))?;
        }
        let name = self.snapshots.dir.join(self.id.as_str());
        fs::rename(&self.dir, &name).map_err(at("rename", &self.dir))?;
        self.is_finished = true;
        self.snapshots.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id.clone());
        let dir = &self.snapshots.dir;
        File::open(dir).and_then(|file| file.sync_all()).map_err(at("write", dir))?;
        Ok(description)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            let dir = self.dir.display();
            tracing::error!(%dir, error = &error as &dyn std::error::Error, "half a snapshot cannot be removed");
        }
        self.snapshots.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Gives each file a further name in the directory, its number; where that is on another file system,
/// a copy.
fn link_layers(files: &[PathBuf], dir: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(at("create", dir))?;
    let link = |(number, file): (usize, &PathBuf)| {
        let name = dir.join(number.to_string());
        match fs::hard_link(file, &name) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_sparse(file, &name),
            result => result,
        }
        .map_err(at("keep", file))?;
        Ok(name)
    };
    files.iter().enumerate().map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> SnapshotId {
        SnapshotId::from_random(n)
    }

    fn programs() -> Programs {
        Programs { monitor: "m".into(), kernel: "k".into(), initramfs: "i".into() }
    }

    const SIZE: Size = Size { vcpus: 1, memory_mib: 1 };

    fn description(id: SnapshotId) -> Description {
        Description {
            id,
            task: TaskId::from_random(7),
            size: SIZE,
            programs: programs(),
            images: vec![("app".into(), None)],
            layers: 0,
            ephemeral_storage_gib: 20,
            memory_length: 0,
            scratch_length: 0,
            memory_sum: 0,
            memory_bytes: 0,
            disk_bytes: 0,
            made_at: Timestamp(5),
            paused_ms: 3,
        }
    }

    /// A snapshot of a "machine" whose files hold their names.
    fn make(snapshots: &Arc<Snapshots>, id: &SnapshotId, dir: &Path) -> Description {
        let (layer, scratch) = (dir.join("layer"), dir.join("disk"));
        fs::write(&layer, "layer").unwrap();
        let disk = File::create(&scratch).unwrap();
        disk.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, b"scratch", 1 << 20).unwrap();
        let draft = snapshots.begin(id, SIZE, &scratch).unwrap().unwrap();
        assert!(snapshots.begin(id, SIZE, &scratch).unwrap().is_none(), "it is made twice at once");
        let (mut state, mut memory) = draft.machine_files().unwrap();
        io::Write::write_all(&mut state, b"state").unwrap();
        io::Write::write_all(&mut memory, b"memory").unwrap();
        copy_sparse(&scratch, &draft.scratch()).unwrap();
        draft.finish(description(id.clone()), &[layer.clone(), layer]).unwrap()
    }

    #[test]
    fn a_finished_snapshot_is_found_again_and_half_a_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("snapshots");
        let snapshots = Snapshots::open(place.clone()).unwrap();
        let made = make(&snapshots, &id(1), dir.path());
        assert_eq!((made.layers, made.memory_length, made.scratch_length), (2, 6, 64 << 20));
        assert!(made.disk_bytes < 1 << 20, "{}", made.disk_bytes);
        let report = made.report();
        assert_eq!((report.status, report.memory_bytes), (SnapshotStatus::Ready, made.memory_bytes));
        // Given up half-way, and killed half-way.
        let draft = snapshots.begin(&id(2), SIZE, &dir.path().join("disk")).unwrap().unwrap();
        draft.machine_files().unwrap();
        drop(draft);
        assert!(!place.join(format!("{}.new", id(2))).exists() && !snapshots.is_being_made(&id(2)));
        std::mem::forget(snapshots.begin(&id(3), SIZE, &dir.path().join("disk")).unwrap());
        drop(snapshots);
        let snapshots = Snapshots::open(place.clone()).unwrap();
        assert_eq!(snapshots.describe(&id(1)).unwrap(), Some(made));
        assert_eq!(snapshots.describe(&id(3)).unwrap(), None);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        snapshots.keep_only(&BTreeSet::from([id(1)])).unwrap();
        assert!(snapshots.open_saved(&id(1)).is_ok());
        snapshots.keep_only(&BTreeSet::new()).unwrap();
        assert!(matches!(snapshots.open_saved(&id(1)), Err(SnapshotError::Missing)));
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    }

    #[test]
    fn a_task_gets_a_disk_and_layers_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        make(&snapshots, &id(1), dir.path());
        let saved = snapshots.open_saved(&id(1)).unwrap();
        let (disk, layers) = (dir.path().join("0.ext4"), dir.path().join("slot/layers"));
        fs::write(&disk, "empty").unwrap();
        saved.copy_scratch(&disk).unwrap();
        let layers = saved.link_layers(&layers).unwrap();
        // The snapshot may go; what the task has stays.
        snapshots.keep_only(&BTreeSet::new()).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 64 << 20);
        assert_eq!(layers.iter().map(|l| fs::read(l).unwrap()).collect::<Vec<_>>(), [b"layer", b"layer"]);
    }

    #[test]
    fn damaged_memory_of_the_right_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots");
        make(&Snapshots::open(path.clone()).unwrap(), &id(1), dir.path());
        let opened = || Snapshots::open(path.clone()).unwrap().open_saved(&id(1)).map(drop);
        opened().unwrap();
        fs::write(path.join(id(1).as_str()).join("memory"), "memorY").unwrap();
        assert!(opened().unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let (good, dir) = (description(id(1)), tempfile::tempdir().unwrap());
        good.check(&programs(), SIZE, 20).unwrap();
        let refusal =
            |programs: &Programs, size, gib| good.check(programs, size, gib).unwrap_err().to_string();
        let kernel = Programs { kernel: "other".into(), ..programs() };
        assert!(refusal(&kernel, SIZE, 20).contains("another guest kernel"));
        let supervisor = Programs { initramfs: "other".into(), ..programs() };
        assert!(refusal(&supervisor, SIZE, 20).contains("another supervisor"));
        let monitor = Programs { monitor: "other".into(), ..programs() };
        assert!(refusal(&monitor, SIZE, 20).contains("another microVM monitor"));
        assert!(refusal(&programs(), Size { vcpus: 2, ..SIZE }, 20).contains("another size"));
        assert!(refusal(&programs(), SIZE, 21).contains("another size"));
        // A file that was cut.
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        make(&snapshots, &id(1), dir.path());
        File::options()
            .write(true)
            .open(dir.path().join("snapshots").join(id(1).as_str()).join("memory"))
            .unwrap()
            .set_len(3)
            .unwrap();
        let error = snapshots.open_saved(&id(1)).unwrap_err().to_string();
        assert!(error.contains("damaged: memory has 3 bytes"), "{error}");
        // A disk without room for the machine.
        let huge = Size { vcpus: 1, memory_mib: u32::MAX };
        let error = snapshots.begin(&id(2), huge, &dir.path().join("disk")).unwrap_err().to_string();
        assert!(error.contains("MiB free"), "{error}");
        assert!(!snapshots.is_being_made(&id(2)));
    }
}
