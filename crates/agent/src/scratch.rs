//! Ephemeral storage: each task has a disk of its own, a sparse file with an ext4 file system.
//!
//! The supervisor mounts it, through a loop device ([`crate::loop_device`]), in its own mount
//! namespace, with [`MOUNT_OPTIONS`]; a task that fills its disk gets ENOSPC and hurts nobody
//! else. Disks are copies of an empty template of their size, so making one costs as much as
//! copying the file system's few hundred kilobytes of metadata.
//!
//! Files are sparse: what they may grow to is a promise. [`ScratchDir::budget`] says how much is
//! promised and how much may still be; the planner must stay below it. If the host's disk does
//! fill up (others write to it, too), writes of all tasks fail with EIO or, the file system being
//! remounted read-only, EROFS: nothing is corrupted that fsync had acknowledged, and it ends when
//! there is room, for new tasks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom;

/// Fargate's default, in GiB ("Fargate task ephemeral storage").
pub const DEFAULT_GIB: u64 = 20;
/// The most that Fargate gives, in GiB.
pub const MAX_GIB: u64 = 200;

/// For mount(8) or mount(2) with type ext4. `discard` gives the host back what a task deletes;
/// `errors=remount-ro` stops a task from going on with a file system that lost writes.
pub const MOUNT_OPTIONS: &str = "noatime,nodev,discard,errors=remount-ro";

const GIB: u64 = 1 << 30;
const TEMPLATES: &str = ".templates";

/// An error of a scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// Sizes are 1 to [`MAX_GIB`] GiB.
    #[error("ephemeral storage of {0} GiB is not between 1 and {MAX_GIB}")]
    Size(u64),
    /// A name is one path component of letters, digits, `-` and `_`.
    #[error("{0:?} is not a name for a scratch disk")]
    Name(String),
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// mkfs.ext4 (package e2fsprogs) failed.
    #[error("mkfs.ext4 failed: {0}")]
    Mkfs(String),
}

impl ScratchError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// What the disk under a [`ScratchDir`] has promised, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Free for files now.
    pub free: u64,
    /// What the existing disks may still grow by.
    pub promised: u64,
    /// What new disks may have in total: `free` × the overcommit factor − `promised`, at least 0.
    pub available: u64,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// The directory with the disks of all tasks. Calls block.
#[derive(Debug, Clone)]
pub struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    /// Opens the directory, making it where needed (mode 0700: the disks are tenants' data).
    pub fn open(path: &Path) -> Result<Self, ScratchError> {
        let templates = path.join(TEMPLATES);
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&templates).map_err(ScratchError::io("create", &templates))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Makes the template for a size, once; some 20 ms. [`create`](Self::create) does it when
    /// needed, this does it ahead.
    pub fn prepare(&self, size_gib: u64) -> Result<(), ScratchError> {
        self.template(size_gib).map(|_| ())
    }

    /// Makes an empty disk called `name`; one left over under that name is replaced.
    pub fn create(&self, name: &str, size_gib: u64) -> Result<Scratch, ScratchError> {
        let path = self.file(name)?;
        let template = self.template(size_gib)?;
        // Only whole disks get their name.
        let partial = path.with_extension("partial");
        let copied = copy_sparse(&template, &partial).and_then(|()| fs::rename(&partial, &path));
        if let Err(error) = copied {
            let _ = fs::remove_file(&partial);
            return Err(ScratchError::io("create", &path)(error));
        }
        Ok(Scratch { path, size: size_gib * GIB })
    }

    /// Gives a disk another name, such as a task's to one that was made ahead.
    pub fn rename(&self, disk: Scratch, name: &str) -> Result<Scratch, ScratchError> {
        let path = self.file(name)?;
        fs::rename(&disk.path, &path).map_err(ScratchError::io("rename", &disk.path))?;
        Ok(Scratch { path, ..disk })
    }

    /// Removes a disk; one that does not exist is fine. A mounted one lives on, without a name,
    /// until it is unmounted.
    pub fn remove(&self, name: &str) -> Result<(), ScratchError> {
        let path = self.file(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ScratchError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Names of the disks there are. What a crash left half-made is removed.
    pub fn list(&self) -> Result<Vec<String>, ScratchError> {
        let mut names = Vec::new();
        for (path, _) in self.files()? {
            match (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|s| s.to_str())) {
                (Some("ext4"), Some(stem)) => names.push(stem.to_owned()),
                (Some("partial"), _) => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// Counts what is promised. `factor` is how much of the free space may be promised: 1.0 never
    /// overcommits, 2.0 bets that tasks use half of what they ask for.
    pub fn budget(&self, factor: f64) -> Result<Budget, ScratchError> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|error| ScratchError::io("look at", &self.path)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let promised =
            self.files()?.iter().map(|(_, found)| found.len().saturating_sub(found.blocks() * 512)).sum();
        // Rounding is of no consequence at these sizes.
        let allowed = (free as f64 * factor.max(0.0)) as u64;
        Ok(Budget { free, promised, available: allowed.saturating_sub(promised) })
    }

    fn files(&self) -> Result<Vec<(PathBuf, fs::Metadata)>, ScratchError> {
        let failed = || ScratchError::io("list", &self.path);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => found.push((entry.path(), metadata)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed()(error)),
            }
        }
        Ok(found)
    }

    fn file(&self, name: &str) -> Result<PathBuf, ScratchError> {
        let valid = (1..=128).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !valid {
            return Err(ScratchError::Name(name.chars().take(128).collect()));
        }
        Ok(self.path.join(format!("{name}.ext4")))
    }

    fn template(&self, size_gib: u64) -> Result<PathBuf, ScratchError> {
        if !(1..=MAX_GIB).contains(&size_gib) {
            return Err(ScratchError::Size(size_gib));
        }
        let path = self.path.join(TEMPLATES).join(format!("{size_gib}g.ext4"));
        if path.exists() {
            return Ok(path);
        }
        // Several may make it at once: each its own file, and the last to finish wins.
        let partial = path.with_extension(format!("{:016x}.partial", rand::random::<u64>()));
        let made = make_file_system(&partial, size_gib * GIB)
            .and_then(|()| fs::rename(&partial, &path).map_err(ScratchError::io("create", &path)));
        if made.is_err() {
            let _ = fs::remove_file(&partial);
        }
        made.map(|()| path)
    }
}

/// A sparse file with an empty ext4. No journal: the disk never outlives its task's host, and
/// after a crash of the host there is no task to read it.
fn make_file_system(path: &Path, size: u64) -> Result<(), ScratchError> {
    let file = new_file(path).map_err(ScratchError::io("create", path))?;
    file.set_len(size).map_err(ScratchError::io("size", path))?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-L", "scratch", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(ScratchError::io("run mkfs.ext4 (package e2fsprogs) on", path))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(ScratchError::Mkfs(
            text.lines().next().unwrap_or("no message").chars().take(300).collect(),
        ));
    }
    Ok(())
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Copies a file, by sharing its blocks where the file system can (btrfs, XFS), else only the
/// parts that are not holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = new_file(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0;
    loop {
        let start = match rustix::fs::seek(&source, SeekFrom::Data(position)) {
            Ok(start) => start,
            // No data after this position.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&source, SeekFrom::Hole(start))?;
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            let wanted = usize::try_from(end - read_at).unwrap_or(usize::MAX);
            let copied = rustix::fs::copy_file_range(
                &source,
                Some(&mut read_at),
                &target,
                Some(&mut write_at),
                wanted,
            )?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        position = end;
    }
}
