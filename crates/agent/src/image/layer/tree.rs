//! The directory that a layer is unpacked into: every path of the archive is resolved strictly below it.
//!
//! Directories are opened with `openat2(RESOLVE_BENEATH)`, so that no `..`, absolute path or symlink of the archive leads
//! out, whatever the order of entries; the kernel checks, not string handling. Everything else acts on one name in such
//! a directory and never follows it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

/// The longest path below the layer's root, in bytes.
pub(crate) const PATH_MAX: usize = 4096;
/// The most components of a path; bounds what deleting the tree needs.
pub(crate) const DEPTH_MAX: usize = 256;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const OPAQUE: &str = "trusted.overlay.opaque";

/// Why a path cannot be used.
#[derive(Debug)]
pub(crate) enum TreeError {
    /// The path is one that no layer may have.
    Refused(&'static str),
    Os(Errno),
}

impl From<Errno> for TreeError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NAMETOOLONG => Self::Refused("its name is too long"),
            other => Self::Os(other),
        }
    }
}

/// A directory of the tree, open.
pub(crate) struct Directory {
    pub(crate) fd: OwnedFd,
    /// Below the root, without symlinks.
    path: Vec<u8>,
}

pub(crate) struct Tree {
    root: OwnedFd,
    /// The parent of the last entry: archives go directory by directory, so it mostly is the next one's, too.
    last: Option<Directory>,
    /// Parents made because the archive has no entry for them.
    implied: u64,
}

/// A path of the archive, cleaned: no empty components, no `.`, no `..`.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if path.len() > PATH_MAX {
        return Err(TreeError::Refused("its path is longer than 4096 bytes"));
    }
    if path.contains(&0) {
        return Err(TreeError::Refused("its path has a NUL byte"));
    }
    // A leading `/` or `./` means the layer's root, as in Docker.
    let components: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
    if components.contains(&b"..".as_slice()) {
        return Err(TreeError::Refused("its path has a `..` component"));
    }
    if components.len() > DEPTH_MAX {
        return Err(TreeError::Refused("its path is deeper than 256 directories"));
    }
    Ok(components)
}

impl Tree {
    /// `root` must exist and be empty.
    pub(crate) fn open(root: &Path) -> Result<Self, Errno> {
        Ok(Self {
            root: rustix::fs::open(root, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?,
            last: None,
            implied: 0,
        })
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens the directory at `path`, making what is missing of it (mode 0755, owner 0:0, as Docker does).
    pub(crate) fn parent(&mut self, path: &[&[u8]]) -> Result<&Directory, TreeError> {
        let joined = path.join(&b'/');
        if self.last.as_ref().is_none_or(|last| last.path != joined) {
            self.last = None;
            self.last = Some(self.open_parent(path, joined)?);
        }
        self.last.as_ref().ok_or(TreeError::Os(Errno::NOENT))
    }

    /// Opens the existing directory at `path` (for a hard link's target, or to set times at the end).
    pub(crate) fn existing(&self, path: &[&[u8]]) -> Result<OwnedFd, TreeError> {
        if path.is_empty() {
            return Ok(self.root.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?);
        }
        self.open_beneath(&path.join(&b'/'), ResolveFlags::empty())
    }

    /// How many parents were made since the last call.
    pub(crate) fn take_implied(&mut self) -> u64 {
        std::mem::take(&mut self.implied)
    }

    /// To be called when a directory was removed or replaced.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Keeps a directory that was just made: entries below it are next.
    pub(crate) fn entered(&mut self, fd: OwnedFd, parent: Vec<u8>, name: &[u8]) {
        let path = if parent.is_empty() { name.to_vec() } else { [&parent, b"/".as_slice(), name].concat() };
        self.last = Some(Directory { fd, path });
    }

    fn open_beneath(&self, path: &[u8], extra: ResolveFlags) -> Result<OwnedFd, TreeError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | extra;
        rustix::fs::openat2(&self.root, OsStr::from_bytes(path), DIRECTORY, Mode::empty(), resolve).map_err(
            |e| match e {
                Errno::XDEV => TreeError::Refused("its path leaves the layer through a symlink"),
                Errno::LOOP if !extra.contains(ResolveFlags::NO_SYMLINKS) => {
                    TreeError::Refused("its path is a symlink loop")
                }
                Errno::NOTDIR => TreeError::Refused("its parent is not a directory"),
                other => other.into(),
            },
        )
    }

    fn open_parent(&mut self, path: &[&[u8]], joined: Vec<u8>) -> Result<Directory, TreeError> {
        if path.is_empty() {
            return Ok(Directory { fd: self.existing(path)?, path: joined });
        }
        match self.open_beneath(&joined, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Ok(Directory { fd, path: joined }),
            Err(TreeError::Os(Errno::LOOP | Errno::NOENT) | TreeError::Refused(_)) => self.walk(path),
            Err(error) => Err(error),
        }
    }

    /// Goes to a parent component by component: some are missing, or are symlinks within the layer.
    fn walk(&mut self, path: &[&[u8]]) -> Result<Directory, TreeError> {
        let mut current = Directory { fd: self.existing(&[])?, path: Vec::new() };
        for component in path {
            let name = OsStr::from_bytes(component);
            let next = if current.path.is_empty() {
                component.to_vec()
            } else {
                [&current.path, b"/".as_slice(), component].concat()
            };
            current = match kind(&current.fd, name)? {
                None => {
                    self.implied += 1;
                    rustix::fs::mkdirat(&current.fd, name, Mode::from_raw_mode(0o755))?;
                    let fd = self.open_beneath(&next, ResolveFlags::NO_SYMLINKS)?;
                    // The process's umask had a say in the mode.
                    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
                    Directory { fd, path: next }
                }
                Some(Existing::Directory) => {
                    Directory { fd: self.open_beneath(&next, ResolveFlags::NO_SYMLINKS)?, path: next }
                }
                Some(Existing::Whiteout) => {
                    Directory { fd: make_opaque_directory(&current.fd, name)?, path: next }
                }
                Some(Existing::Symlink) => self.follow(&next)?,
                Some(Existing::Other) => return Err(TreeError::Refused("its parent is not a directory")),
            };
            // Symlinks could otherwise add up to a path of any length.
            if current.path.len() > PATH_MAX || current.path.split(|b| *b == b'/').count() > DEPTH_MAX {
                return Err(TreeError::Refused("its path is too deep"));
            }
        }
        Ok(current)
    }

    /// Opens a symlink to a directory, and finds out where that really is.
    fn follow(&self, path: &[u8]) -> Result<Directory, TreeError> {
        let fd = self.open_beneath(path, ResolveFlags::empty()).map_err(|e| match e {
            TreeError::Os(Errno::NOENT) => TreeError::Refused("its parent is a symlink to nothing"),
            other => other,
        })?;
        let root = self.path_of(&self.root)?;
        let real = self.path_of(&fd)?;
        let below =
            real.strip_prefix(root.as_slice()).ok_or(TreeError::Refused("its path leaves the layer"))?;
        let below = below.strip_prefix(b"/").unwrap_or(below).to_vec();
        Ok(Directory { fd, path: below })
    }

    fn path_of(&self, fd: &OwnedFd) -> Result<Vec<u8>, TreeError> {
        Ok(rustix::fs::readlink(descriptor_path(fd), Vec::new())?.into_bytes())
    }
}

impl Directory {
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    Directory,
    Symlink,
    /// A character device 0:0, overlayfs's mark for a name that lower layers have and this one deletes.
    Whiteout,
    Other,
}

/// What `name` is in `parent`, itself and not what it points to.
pub(crate) fn kind(parent: impl AsFd, name: &OsStr) -> Result<Option<Existing>, TreeError> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Existing::Directory,
            FileType::Symlink => Existing::Symlink,
            FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
            _ => Existing::Other,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes `name` from `parent`, with all that is below it.
pub(crate) fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), TreeError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            // Does not follow symlinks below, and `name` itself is a directory: unlink said so.
            std::fs::remove_dir_all(Path::new(&descriptor_path(parent)).join(name))
                .map_err(|e| TreeError::Os(Errno::from_io_error(&e).unwrap_or(Errno::IO)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Marks `name` as deleted from the layers below.
pub(crate) fn make_whiteout(parent: &OwnedFd, name: &OsStr) -> Result<(), TreeError> {
    match kind(parent, name)? {
        // The layer brings its own: a file hides those below by itself, and a directory does when it is opaque.
        Some(Existing::Directory) => {
            let fd = rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            make_opaque(&fd)
        }
        Some(_) => Ok(()),
        None => Ok(rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?),
    }
}

/// Hides what lower layers have in this directory (overlayfs.rst, "whiteouts and opaque directories").
pub(crate) fn make_opaque(directory: &OwnedFd) -> Result<(), TreeError> {
    Ok(rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Puts a directory where a whiteout was: what lower layers have in it stays deleted.
pub(crate) fn make_opaque_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, TreeError> {
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let fd = rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
    make_opaque(&fd)?;
    Ok(fd)
}

fn descriptor_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
