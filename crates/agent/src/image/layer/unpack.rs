//! Unpacking a layer's archive into a directory that overlayfs takes as a lower one.
//!
//! What a layer may hold: files, directories, symlinks (to anywhere: they are resolved in the container), hard links
//! within the layer, fifos, and whiteouts in either form (`.wh.` names of OCI image-spec, layer.md, and overlayfs's own
//! 0:0 character devices). Other device nodes are refused: a task gets its devices from its sandbox. Owners are kept as
//! numbers; they are shifted by the sandbox's id-mapped mounts. Of extended attributes only `user.*` and
//! `security.capability` are kept, so that a layer can neither label itself nor speak to overlayfs.

use std::ffi::OsStr;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::holes::{self, Run};
use super::tar::{Entry, Kind, TarError, TarReader, Time};
use super::tree::{self, Existing, Tree, TreeError};

/// Bounds on what one layer may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// File data in bytes.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Bytes of the file system that are left free.
    pub(crate) free_bytes: u64,
}

/// What a layer unpacked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// File data in bytes, without the holes that the archive itself names.
    pub(crate) bytes: u64,
    /// Estimate of the disk space used: data in blocks of 4 KiB, and metadata.
    pub(crate) disk_bytes: u64,
    pub(crate) entries: u64,
}

/// Why a layer could not be unpacked.
#[derive(Debug)]
pub(crate) enum UnpackError {
    Archive(TarError),
    Hostile { path: String, why: String },
    TooLarge { what: &'static str, limit: String },
    DiskFull(String),
    Host { path: String, error: Errno },
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        Self::Archive(error)
    }
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// Free space is looked at each time that this much was written.
const FREE_CHECK: u64 = 32 << 20;
/// Paths of directories that are kept to set their times at the end, in bytes.
const DIRECTORY_PATHS_MAX: usize = 128 << 20;

/// Unpacks the archive in `input` into `root`, an existing empty directory, and reads `input` to its end.
pub(crate) fn unpack<R: BufRead>(input: R, root: &Path, limits: Limits) -> Result<Unpacked, UnpackError> {
    let tree = Tree::open(root).map_err(|error| UnpackError::Host { path: ".".to_owned(), error })?;
    let mut unpack = Unpack {
        tree,
        limits,
        totals: Unpacked::default(),
        unchecked: FREE_CHECK,
        times: Vec::new(),
        paths: 0,
    };
    let mut tar = TarReader::new(input);
    while let Some(entry) = tar.next()? {
        unpack.entry(&mut tar, &entry)?;
    }
    unpack.finish_directories();
    // The zero blocks after the end belong to the diff id. They are bounded like data.
    let mut rest = tar.into_inner();
    let mut trailing = 0_u64;
    loop {
        let length = rest.fill_buf().map_err(TarError::from)?.len();
        if length == 0 {
            return Ok(unpack.totals);
        }
        trailing += length as u64;
        if trailing > limits.bytes {
            return Err(unpack.too_many_bytes());
        }
        rest.consume(length);
    }
}

struct Unpack {
    tree: Tree,
    limits: Limits,
    totals: Unpacked,
    /// Bytes written since free space was looked at.
    unchecked: u64,
    /// Directories, and the times they get once nothing is put into them any more.
    times: Vec<(Vec<u8>, Time)>,
    paths: usize,
}

impl Unpack {
    fn entry<R: BufRead>(&mut self, tar: &mut TarReader<R>, entry: &Entry) -> Result<(), UnpackError> {
        // Directories that only the paths of earlier entries name count like entries of their own.
        let implied = self.tree.take_implied();
        self.charge(0, implied.saturating_mul(4096))?;
        self.totals.entries += 1 + implied;
        if self.totals.entries > self.limits.entries {
            return Err(UnpackError::TooLarge {
                what: "number of layer entries",
                limit: self.limits.entries.to_string(),
            });
        }
        let result = self.apply(tar, entry);
        result.map_err(|e| match e {
            Failure::Unpack(error) => error,
            Failure::Tree(error) => self.locate(&entry.path, error),
        })
    }

    fn apply<R: BufRead>(&mut self, tar: &mut TarReader<R>, entry: &Entry) -> Result<(), Failure> {
        self.charge(0, 512)?;
        let path = tree::components(&entry.path)?;
        let Some((name, parent)) = path.split_last() else {
            return self.root_entry(entry);
        };
        // Directories of AUFS's own, such as `.wh..wh.plnk`; Docker skips them.
        if parent.iter().any(|component| component.starts_with(AUFS)) {
            return Ok(());
        }
        if *name == OPAQUE {
            return Ok(tree::make_opaque(&self.tree.parent(parent)?.fd)?);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden);
        }
        let name = OsStr::from_bytes(name);
        match entry.kind {
            Kind::Directory => self.directory(parent, name, entry),
            Kind::File => self.file(tar, parent, name, entry),
            Kind::HardLink => self.hard_link(parent, name, entry),
            Kind::Symlink => self.symlink(parent, name, entry),
            Kind::Fifo => self.fifo(parent, name, entry),
            Kind::CharDevice { major: 0, minor: 0 } => {
                Ok(tree::make_whiteout(&self.tree.parent(parent)?.fd, name)?)
            }
            Kind::CharDevice { .. } | Kind::BlockDevice => {
                Err(TreeError::Refused("device nodes are not allowed in a layer").into())
            }
        }
    }

    /// The layer's root itself, as `./` or `/`.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.kind != Kind::Directory {
            return Err(TreeError::Refused("the layer's root is not a directory").into());
        }
        let root = self.tree.existing(&[])?;
        self.directory_metadata(&root, Vec::new(), entry)
    }

    fn whiteout(&mut self, parent: &[&[u8]], hidden: &[u8]) -> Result<(), Failure> {
        if hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(TreeError::Refused("it is a whiteout of no name").into());
        }
        let directory = self.tree.parent(parent)?;
        Ok(tree::make_whiteout(&directory.fd, OsStr::from_bytes(hidden))?)
    }

    fn directory(&mut self, parent: &[&[u8]], name: &OsStr, entry: &Entry) -> Result<(), Failure> {
        self.charge(0, 4096)?;
        let directory = self.tree.parent(parent)?;
        let below = directory.path().to_vec();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = None;
        if let Err(error) = rustix::fs::mkdirat(&directory.fd, name, Mode::from_raw_mode(0o700)) {
            if error != Errno::EXIST {
                return Err(error.into());
            }
            match tree::kind(&directory.fd, name)? {
                Some(Existing::Directory) => {}
                Some(Existing::Whiteout) => fd = Some(tree::make_opaque_directory(&directory.fd, name)?),
                _ => {
                    tree::remove(&directory.fd, name)?;
                    rustix::fs::mkdirat(&directory.fd, name, Mode::from_raw_mode(0o700))?;
                }
            }
        }
        let fd = match fd {
            Some(fd) => fd,
            None => rustix::fs::openat(&directory.fd, name, flags, Mode::empty())?,
        };
        let path = if below.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [&below, b"/".as_slice(), name.as_bytes()].concat()
        };
        self.directory_metadata(&fd, path, entry)?;
        self.tree.entered(fd, below, name.as_bytes());
        Ok(())
    }

    fn directory_metadata(&mut self, fd: &OwnedFd, path: Vec<u8>, entry: &Entry) -> Result<(), Failure> {
        self.paths += path.len() + size_of::<(Vec<u8>, Time)>();
        if self.paths > DIRECTORY_PATHS_MAX {
            return Err(UnpackError::TooLarge {
                what: "directory paths of a layer",
                limit: format!("{DIRECTORY_PATHS_MAX} bytes"),
            }
            .into());
        }
        self.times.push((path, entry.mtime));
        metadata(fd, entry)?;
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        parent: &[&[u8]],
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.create(parent, name, |parent| {
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
        })?;
        match &entry.sparse {
            None => {
                if self.write(tar, &fd, 0, entry.size)? < entry.size {
                    rustix::fs::ftruncate(&fd, entry.size)?;
                }
            }
            Some(segments) => {
                for segment in segments {
                    self.write(tar, &fd, segment.offset, segment.length)?;
                }
                rustix::fs::ftruncate(&fd, entry.size)?;
            }
        }
        metadata(&fd, entry)?;
        Ok(rustix::fs::futimens(&fd, &timestamps(entry.mtime))?)
    }

    /// Writes `length` bytes of the entry's data at `offset`, all but long runs of zeros. Gives the offset at which the
    /// last write ended; what is after it are zeros.
    fn write<R: BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        fd: &OwnedFd,
        offset: u64,
        length: u64,
    ) -> Result<u64, Failure> {
        // Before the data, so that a bomb is refused by its header.
        self.charge(length, length.next_multiple_of(4096))?;
        let mut position = offset;
        let mut end = offset;
        while position < offset + length {
            let data = tar.data(offset + length - position).map_err(UnpackError::from)?;
            if data.is_empty() {
                return Err(UnpackError::Archive(TarError::Truncated).into());
            }
            let run = match holes::first_run(data, position) {
                Run::Data(run) => run,
                Run::Hole(run) => {
                    tar.consume(run);
                    position += run as u64;
                    continue;
                }
            };
            let amount = rustix::io::pwrite(fd, &data[..run], position)?;
            if amount == 0 {
                return Err(Errno::IO.into());
            }
            tar.consume(amount);
            position += amount as u64;
            end = position;
            self.unchecked += amount as u64;
            if self.unchecked >= FREE_CHECK {
                self.check_free()?;
            }
        }
        Ok(end)
    }

    fn hard_link(&mut self, parent: &[&[u8]], name: &OsStr, entry: &Entry) -> Result<(), Failure> {
        let refused = |error: TreeError| match error {
            TreeError::Refused(why) => Failure::Unpack(UnpackError::Hostile {
                path: display(&entry.path),
                why: format!(
                    "it is a hard link to {:?}, and {}",
                    display(&entry.link),
                    why.replace("its ", "that ")
                ),
            }),
            TreeError::Os(Errno::NOENT) => Failure::Unpack(UnpackError::Hostile {
                path: display(&entry.path),
                why: format!("it is a hard link to {:?}, which is not in the layer", display(&entry.link)),
            }),
            TreeError::Os(error) => error.into(),
        };
        let target = tree::components(&entry.link).map_err(refused)?;
        let Some((target_name, target_parent)) = target.split_last() else {
            return Err(TreeError::Refused("it is a hard link to the layer's root").into());
        };
        let target_name = OsStr::from_bytes(target_name);
        let target_parent = self.tree.existing(target_parent).map_err(refused)?;
        match tree::kind(&target_parent, target_name).map_err(refused)? {
            None | Some(Existing::Whiteout) => return Err(refused(TreeError::Os(Errno::NOENT))),
            Some(Existing::Directory) => {
                return Err(TreeError::Refused("it is a hard link to a directory").into());
            }
            Some(_) => {}
        }
        let link = |parent: &OwnedFd| {
            rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty())
        };
        match self.create(parent, name, link) {
            // The name it replaced was the target itself.
            Err(Failure::Tree(TreeError::Os(Errno::NOENT))) => {
                Err(TreeError::Refused("it is a hard link to itself").into())
            }
            other => other,
        }
    }

    fn symlink(&mut self, parent: &[&[u8]], name: &OsStr, entry: &Entry) -> Result<(), Failure> {
        if entry.link.is_empty() || entry.link.len() >= tree::PATH_MAX || entry.link.contains(&0) {
            return Err(TreeError::Refused("its target is empty or too long").into());
        }
        let target = OsStr::from_bytes(&entry.link);
        self.create(parent, name, |parent| {
            rustix::fs::symlinkat(target, parent, name)?;
            own(parent, name, entry)
        })
    }

    fn fifo(&mut self, parent: &[&[u8]], name: &OsStr, entry: &Entry) -> Result<(), Failure> {
        self.create(parent, name, |parent| {
            rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
            own(parent, name, entry)?;
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
        })
    }

    /// Makes `name` in `parent`, in place of what an earlier entry put there.
    fn create<T>(
        &mut self,
        parent: &[&[u8]],
        name: &OsStr,
        make: impl Fn(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        let directory = self.tree.parent(parent)?;
        match make(&directory.fd) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
        tree::remove(&directory.fd, name)?;
        let made = make(&directory.fd);
        // What was removed may have been the remembered directory, or one above it.
        self.tree.forget();
        Ok(made?)
    }

    /// Times of directories come last: each entry made in one changes it.
    fn finish_directories(&mut self) {
        for (path, time) in std::mem::take(&mut self.times) {
            let components: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|c| !c.is_empty()).collect();
            // It may have been replaced since, by something that is no directory: then its time is of no interest.
            if let Ok(fd) = self.tree.existing(&components) {
                let _ = rustix::fs::futimens(&fd, &timestamps(time));
            }
        }
    }

    fn charge(&mut self, bytes: u64, disk_bytes: u64) -> Result<(), UnpackError> {
        self.totals.bytes = self.totals.bytes.saturating_add(bytes);
        self.totals.disk_bytes = self.totals.disk_bytes.saturating_add(disk_bytes);
        if self.totals.bytes > self.limits.bytes {
            return Err(self.too_many_bytes());
        }
        self.unchecked += disk_bytes - bytes.min(disk_bytes);
        if self.unchecked >= FREE_CHECK { self.check_free() } else { Ok(()) }
    }

    fn too_many_bytes(&self) -> UnpackError {
        UnpackError::TooLarge { what: "unpacked layer", limit: format!("{} bytes", self.limits.bytes) }
    }

    fn check_free(&mut self) -> Result<(), UnpackError> {
        self.unchecked = 0;
        match rustix::fs::fstatvfs(self.tree.root()) {
            Ok(stat) if stat.f_bavail.saturating_mul(stat.f_frsize) < self.limits.free_bytes => {
                Err(UnpackError::DiskFull("layer".to_owned()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(UnpackError::Host { path: ".".to_owned(), error }),
        }
    }

    fn locate(&self, path: &[u8], error: TreeError) -> UnpackError {
        let path = display(path);
        match error {
            TreeError::Refused(why) => UnpackError::Hostile { path, why: why.to_owned() },
            TreeError::Os(Errno::NOSPC | Errno::DQUOT) => UnpackError::DiskFull(path),
            TreeError::Os(Errno::FBIG) => {
                UnpackError::TooLarge { what: "file in a layer", limit: "the file system's".to_owned() }
            }
            TreeError::Os(error) => UnpackError::Host { path, error },
        }
    }
}

/// Either an error that already names its entry, or one that does not yet.
enum Failure {
    Unpack(UnpackError),
    Tree(TreeError),
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        Self::Unpack(error)
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Tree(error.into())
    }
}

/// Owner, mode and extended attributes, in this order: a change of owner clears setuid and capabilities.
fn metadata(fd: &OwnedFd, entry: &Entry) -> Result<(), TreeError> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        if !keeps_xattr(name) {
            continue;
        }
        match rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // ext4 answers NOSPC for a value that does not fit into its one block: not a full disk.
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
                return Err(TreeError::Refused("its extended attributes are too large"));
            }
            Err(Errno::INVAL | Errno::NAMETOOLONG) => {
                return Err(TreeError::Refused("it has an invalid extended attribute"));
            }
            // A file system without user attributes: containerd goes on as well.
            Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn keeps_xattr(name: &[u8]) -> bool {
    let valid = !name.contains(&0);
    valid
        && (name == b"security.capability"
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")))
}

/// Owner and time of something that is not opened.
fn own(parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(parent.as_fd(), name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
}

fn timestamps(time: Time) -> Timestamps {
    let spec = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: spec, last_modification: spec }
}

fn display(path: &[u8]) -> String {
    crate::image::error::printable(&String::from_utf8_lossy(path))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
