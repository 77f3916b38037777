//! The first pass: what is in the layer's directory, without the files' data.
//!
//! The directory is a verified layer that nobody writes to. What it takes in memory is bounded all the same, since
//! layers of two million files are allowed: names are kept, attributes are read again when they are written.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::ErofsError;
use super::format::{self, Xattrs};

/// The most bytes of names that an image may have; the most inodes and entries follow from the layer's own limit.
const NAMES_MAX: usize = 256 << 20;
/// XATTR_LIST_MAX and XATTR_SIZE_MAX of Linux.
const XATTR_MAX: usize = 65_536;

/// A file of any kind. Hard links to it are entries, not inodes.
pub(super) struct Inode {
    pub(super) kind: FileType,
    /// Without the type.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    /// Of a file's data, a symlink's target or a directory's blocks, in bytes.
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) mtime_nanoseconds: u32,
    /// Encoded, of a device.
    pub(super) device: u32,
    /// Whether the file has holes.
    pub(super) sparse: bool,
    /// Encoded size of the extended attributes, in bytes.
    pub(super) xattrs: u32,
    /// The directory in which it was found first, and the entry there. The root is its own.
    pub(super) parent: u32,
    pub(super) entry: u32,
    /// Of a directory: its entries.
    pub(super) first_entry: u32,
    pub(super) entries: u32,
}

/// A name in a directory.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    name: u32,
    name_length: u16,
    pub(super) inode: u32,
}

/// A layer's directory tree. Inode 0 is the root; the others follow directory by directory, so that what is in one
/// directory is together. The same tree always gives the same order.
pub(super) struct Tree {
    root: OwnedFd,
    device: u64,
    pub(super) inodes: Vec<Inode>,
    /// Those of a directory are together, in the order of their names, `.` and `..` among them.
    pub(super) entries: Vec<Entry>,
    names: Vec<u8>,
    /// Inodes that more than one name leads to, by their numbers in the source.
    linked: HashMap<u64, u32>,
}

impl Tree {
    pub(super) fn scan(root: &Path) -> Result<Self, ErofsError> {
        let fail = |error: Errno| ErofsError::host("open", root.display(), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty()).map_err(fail)?;
        let stat = rustix::fs::fstat(&fd).map_err(fail)?;
        let mut tree = Self {
            root: fd,
            device: stat.st_dev,
            inodes: Vec::new(),
            entries: Vec::new(),
            names: Vec::new(),
            linked: HashMap::new(),
        };
        tree.inodes.push(inode(&stat, 0, 0));
        let mut next = 0;
        while next < tree.inodes.len() {
            if tree.inodes[next].kind == FileType::Directory {
                tree.directory(next as u32)?;
            }
            next += 1;
        }
        Ok(tree)
    }

    pub(super) fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.name as usize..][..entry.name_length.into()]
    }

    pub(super) fn entries_of(&self, directory: &Inode) -> &[Entry] {
        &self.entries[directory.first_entry as usize..][..directory.entries as usize]
    }

    /// Opens a directory of the tree.
    pub(super) fn open_directory(&self, directory: u32) -> Result<OwnedFd, ErofsError> {
        let path = self.path(directory);
        let name = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(&path) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve)
            .map_err(|e| ErofsError::host("open", display(&path), e))
    }

    /// Below the root, without a leading slash.
    pub(super) fn path(&self, inode: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = inode;
        while at != 0 {
            let inode = &self.inodes[at as usize];
            names.push(self.name(&self.entries[inode.entry as usize]));
            at = inode.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn directory(&mut self, directory: u32) -> Result<(), ErofsError> {
        let fd = self.open_directory(directory)?;
        let fail = |tree: &Self, error: Errno| {
            ErofsError::host("read", display(&tree.path(directory)), io::Error::from(error))
        };
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut bytes = self.names.len();
        for entry in Dir::read_from(&fd).map_err(|e| fail(self, e))? {
            // `.` and `..` are among them.
            let name = entry.map_err(|e| fail(self, e))?.file_name().to_bytes().to_vec();
            bytes += name.len();
            if bytes > NAMES_MAX {
                let limit = format!("{NAMES_MAX} bytes");
                return Err(ErofsError::TooLarge { what: "names in a layer", limit });
            }
            names.push(name);
        }
        names.sort_unstable();
        let first_entry = self.entries.len() as u32;
        let mut subdirectories = 0;
        for name in &names {
            let inode = match name.as_slice() {
                b"." => directory,
                b".." => self.inodes[directory as usize].parent,
                _ => {
                    let inode = self.child(directory, &fd, name)?;
                    subdirectories += u32::from(self.inodes[inode as usize].kind == FileType::Directory);
                    inode
                }
            };
            let entry = Entry { name: self.names.len() as u32, name_length: name.len() as u16, inode };
            self.names.extend_from_slice(name);
            self.entries.push(entry);
        }
        let xattrs = self.xattrs_length(&fd, directory)?;
        let inode = &mut self.inodes[directory as usize];
        (inode.first_entry, inode.entries) = (first_entry, names.len() as u32);
        inode.links = 2 + subdirectories;
        inode.size = format::directory_size(&format::directory_blocks(names.iter().map(Vec::len)));
        inode.xattrs = xattrs;
        Ok(())
    }

    /// The inode that `name` leads to, which is about to get the next entry.
    fn child(&mut self, parent: u32, fd: &OwnedFd, name: &[u8]) -> Result<u32, ErofsError> {
        let host = |what, error: Errno| ErofsError::host(what, display(name), io::Error::from(error));
        let os_name = OsStr::from_bytes(name);
        let stat = rustix::fs::statat(fd, os_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| host("stat", e))?;
        if stat.st_dev != self.device {
            return Err(host("cross into", Errno::XDEV));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let linked = kind != FileType::Directory && stat.st_nlink > 1;
        if linked && let Some(known) = self.linked.get(&stat.st_ino) {
            self.inodes[*known as usize].links += 1;
            return Ok(*known);
        }
        let number = self.inodes.len() as u32;
        let mut inode = inode(&stat, parent, self.entries.len() as u32);
        if kind == FileType::RegularFile {
            let file = open_file(fd, name).map_err(|e| host("open", e))?;
            inode.xattrs = self.xattrs_length(&file, number)?;
        }
        if linked {
            self.linked.insert(stat.st_ino, number);
        }
        self.inodes.push(inode);
        Ok(number)
    }

    fn xattrs_length(&self, fd: &OwnedFd, inode: u32) -> Result<u32, ErofsError> {
        let xattrs = xattrs(fd).map_err(|e| {
            ErofsError::host("read the attributes of", display(&self.path(inode)), io::Error::from(e))
        })?;
        let mut length = 0;
        for (name, value) in &xattrs {
            length += format::xattr_length(name, value.len()).ok_or_else(too_large_xattr)?;
        }
        let length = format::xattrs_length(length);
        if length > format::XATTRS_MAX { Err(too_large_xattr()) } else { Ok(length as u32) }
    }
}

fn too_large_xattr() -> ErofsError {
    ErofsError::TooLarge { what: "extended attributes of a file", limit: "what EROFS holds".to_owned() }
}

fn inode(stat: &Stat, parent: u32, entry: u32) -> Inode {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let has_size = matches!(kind, FileType::RegularFile | FileType::Symlink);
    Inode {
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: 1,
        size: if has_size { stat.st_size as u64 } else { 0 },
        mtime: stat.st_mtime,
        mtime_nanoseconds: stat.st_mtime_nsec as u32,
        device: if is_device {
            format::encode_device(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        } else {
            0
        },
        sparse: kind == FileType::RegularFile && stat.st_blocks.saturating_mul(512) < stat.st_size,
        xattrs: 0,
        parent,
        entry,
        first_entry: 0,
        entries: 0,
    }
}

/// Opens a regular file of a layer.
pub(super) fn open_file(directory: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(directory, OsStr::from_bytes(name), flags, Mode::empty())
}

/// The attributes that belong to a layer, sorted by name. Others are the host's own, such as SELinux labels.
pub(super) fn xattrs(fd: &OwnedFd) -> Result<Xattrs, Errno> {
    // Most files have none, and then asking for the list's length is all it takes.
    match rustix::fs::flistxattr_query(fd) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(error),
    }
    let mut list = vec![0; XATTR_MAX];
    let length = rustix::fs::flistxattr(fd, &mut list[..])?;
    let mut names: Vec<&[u8]> = list[..length].split(|b| *b == 0).filter(|name| belongs(name)).collect();
    names.sort_unstable();
    let mut xattrs = Vec::with_capacity(names.len());
    let mut value = vec![0; XATTR_MAX];
    for name in names {
        let length = rustix::fs::fgetxattr(fd, OsStr::from_bytes(name), &mut value[..])?;
        xattrs.push((name.to_vec(), value[..length].to_vec()));
    }
    Ok(xattrs)
}

fn belongs(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability" || name == b"trusted.overlay.opaque"
}

/// A path of a layer, in an error.
pub(super) fn display(path: &[u8]) -> String {
    crate::image::error::printable(&String::from_utf8_lossy(path))
}
