//! The second pass: where everything goes, and writing it.
//!
//! ```text
//! block 0      superblock
//! from 1       inodes, each with its extended attributes and, where it is small, the tail of its data
//! then         data in whole blocks: directories and files, in the order of their inodes
//! ```
//!
//! Both areas are written from front to back. Holes of files are holes of the image.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::format::{self, BLOCK, INODE, INODES_AT, SLOT};
use super::scan::{self, Inode, Tree};
use super::{ErofsError, Options};

/// A tail of up to this many bytes follows its inode. Longer ones would leave much of the inodes' blocks unused, which
/// are what a walk through directories reads.
const INLINE_MAX: u64 = 2048;
/// What is collected before it is written; files with more data are copied in the kernel.
const BUFFER: usize = 256 << 10;
/// Free space is looked at each time that this much was written.
const FREE_CHECK: u64 = 32 << 20;

/// Where an inode is.
#[derive(Clone, Copy, Default)]
struct Place {
    /// In units of [`SLOT`]: its number.
    slot: u32,
    /// The first block of its data, if any.
    block: u32,
    inline: bool,
}

struct Layout {
    places: Vec<Place>,
    blocks: u32,
}

/// Writes the image of `tree` into an empty file. Gives its length in bytes, a multiple of 4096.
pub(super) fn write(tree: &Tree, file: &File, options: &Options) -> Result<u64, ErofsError> {
    let layout = layout(tree)?;
    let out = Output { file, min_free_bytes: options.min_free_bytes };
    out.check_free()?;
    let mut writer = Writer { tree, layout: &layout, inodes: Area::new(&out), data: Area::new(&out) };
    let superblock = format::Superblock {
        root: layout.places[0].slot as u16,
        inodes: tree.inodes.len() as u64,
        blocks: layout.blocks,
        uuid: options.uuid,
    };
    writer.inodes.put(&superblock.encode())?;
    writer.all()?;
    writer.inodes.flush()?;
    writer.data.flush()?;
    let length = u64::from(layout.blocks) * BLOCK;
    rustix::fs::ftruncate(file, length).map_err(write_failed)?;
    Ok(length)
}

fn layout(tree: &Tree) -> Result<Layout, ErofsError> {
    let mut places = vec![Place::default(); tree.inodes.len()];
    let mut at = INODES_AT;
    for (inode, place) in tree.inodes.iter().zip(&mut places) {
        let head = INODE + u64::from(inode.xattrs);
        let tail = inode.size % BLOCK;
        let most = if inode.kind == FileType::Symlink { BLOCK } else { INLINE_MAX };
        place.inline = tail > 0 && tail <= most && head + tail <= BLOCK;
        // Neither an inode's head nor an inline tail goes over the end of a block.
        let together = if place.inline { head + tail } else { INODE };
        if at % BLOCK + together > BLOCK {
            at = at.next_multiple_of(BLOCK);
        }
        place.slot = u32::try_from(at / SLOT).map_err(|_| too_large())?;
        at = (at + head + if place.inline { tail } else { 0 }).next_multiple_of(SLOT);
    }
    let mut block = at.div_ceil(BLOCK);
    for (inode, place) in tree.inodes.iter().zip(&mut places) {
        let blocks = if place.inline { inode.size / BLOCK } else { inode.size.div_ceil(BLOCK) };
        if blocks > 0 {
            place.block = u32::try_from(block).map_err(|_| too_large())?;
            block = block.saturating_add(blocks);
        }
    }
    // The highest number means "no block".
    let blocks = u32::try_from(block).ok().filter(|blocks| *blocks < u32::MAX).ok_or_else(too_large)?;
    Ok(Layout { places, blocks })
}

fn too_large() -> ErofsError {
    ErofsError::TooLarge { what: "layer", limit: "16 TiB, holes of files counted".to_owned() }
}

fn write_failed(error: Errno) -> ErofsError {
    match error {
        Errno::NOSPC | Errno::DQUOT => ErofsError::DiskFull,
        Errno::FBIG => ErofsError::TooLarge { what: "image", limit: "the file system's".to_owned() },
        error => ErofsError::host("write", "a layer's image", error),
    }
}

struct Output<'a> {
    file: &'a File,
    min_free_bytes: u64,
}

impl Output<'_> {
    fn check_free(&self) -> Result<(), ErofsError> {
        let stat = rustix::fs::fstatvfs(self.file).map_err(write_failed)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < self.min_free_bytes { Err(ErofsError::DiskFull) } else { Ok(()) }
    }
}

/// A part of the image that is written from front to back.
struct Area<'a> {
    out: &'a Output<'a>,
    /// Not yet written; its first byte goes to `start`.
    buffer: Vec<u8>,
    start: u64,
    /// Bytes written since free space was looked at.
    unchecked: u64,
}

impl<'a> Area<'a> {
    fn new(out: &'a Output<'a>) -> Self {
        Self { out, buffer: Vec::with_capacity(BUFFER), start: 0, unchecked: 0 }
    }

    /// What is put next goes to `position`, which is never before what was put last; zeros are between them.
    fn go_to(&mut self, position: u64) -> Result<(), ErofsError> {
        let gap = position - (self.start + self.buffer.len() as u64);
        if gap < BLOCK {
            self.buffer.resize(self.buffer.len() + gap as usize, 0);
            return Ok(());
        }
        self.flush()?;
        self.start = position;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        let mut written = 0;
        while written < self.buffer.len() {
            let position = self.start + written as u64;
            match rustix::io::pwrite(self.out.file, &self.buffer[written..], position) {
                Ok(0) => return Err(write_failed(Errno::IO)),
                Ok(amount) => written += amount,
                Err(Errno::INTR) => {}
                Err(error) => return Err(write_failed(error)),
            }
        }
        self.buffer.clear();
        self.advance(written as u64)
    }

    fn advance(&mut self, written: u64) -> Result<(), ErofsError> {
        self.start += written;
        self.unchecked += written;
        if self.unchecked < FREE_CHECK {
            return Ok(());
        }
        self.unchecked = 0;
        self.out.check_free()
    }

    /// Puts a part of a file here, through the buffer.
    fn put_file(&mut self, file: &OwnedFd, mut from: u64, to: u64) -> Result<(), Failure> {
        while from < to {
            let amount = (to - from).min(BUFFER as u64) as usize;
            let before = self.buffer.len();
            self.buffer.resize(before + amount, 0);
            let mut read = 0;
            while read < amount {
                match rustix::io::pread(file, &mut self.buffer[before + read..], from + read as u64) {
                    Ok(0) => return Err(Failure::Source("changed while it was read:", Errno::IO)),
                    Ok(more) => read += more,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(Failure::Source("read", error)),
                }
            }
            from += amount as u64;
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Puts a part of a file here: in the kernel, which on file systems that can shares its blocks instead.
    fn copy_file(&mut self, file: &OwnedFd, mut from: u64, to: u64) -> Result<(), Failure> {
        self.flush()?;
        while from < to {
            let amount = (to - from).min(FREE_CHECK) as usize;
            let (mut source, mut target) = (from, self.start);
            let copied = rustix::fs::copy_file_range(
                file,
                Some(&mut source),
                self.out.file,
                Some(&mut target),
                amount,
            );
            match copied {
                Ok(0) => return Err(Failure::Source("changed while it was read:", Errno::IO)),
                Ok(amount) => {
                    from += amount as u64;
                    self.advance(amount as u64)?;
                }
                Err(Errno::INTR) => {}
                // Not on these file systems.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV | Errno::INVAL) => {
                    return self.put_file(file, from, to);
                }
                Err(error) => return Err(Failure::Image(write_failed(error))),
            }
        }
        Ok(())
    }
}

/// An error that does not yet name the file of the layer that it comes from, or one that is not of a file.
enum Failure {
    Source(&'static str, Errno),
    Image(ErofsError),
}

impl From<ErofsError> for Failure {
    fn from(error: ErofsError) -> Self {
        Self::Image(error)
    }
}

struct Writer<'a> {
    tree: &'a Tree,
    layout: &'a Layout,
    inodes: Area<'a>,
    data: Area<'a>,
}

impl Writer<'_> {
    fn all(&mut self) -> Result<(), ErofsError> {
        // The directory of the inodes at hand.
        let mut open: Option<(u32, OwnedFd)> = None;
        for number in 0..self.tree.inodes.len() as u32 {
            let inode = &self.tree.inodes[number as usize];
            let written = match inode.kind {
                FileType::Directory => self.directory(number),
                FileType::RegularFile | FileType::Symlink => {
                    if open.as_ref().is_none_or(|(directory, _)| *directory != inode.parent) {
                        open = Some((inode.parent, self.tree.open_directory(inode.parent)?));
                    }
                    match (&open, inode.kind) {
                        (Some((_, parent)), FileType::Symlink) => self.symlink(number, parent),
                        (Some((_, parent)), _) => self.file(number, parent),
                        (None, _) => Ok(()),
                    }
                }
                _ => self.head(number, &[]).map_err(Failure::from),
            };
            written.map_err(|failure| match failure {
                Failure::Image(error) => error,
                Failure::Source(what, error) => {
                    ErofsError::host(what, scan::display(&self.tree.path(number)), error)
                }
            })?;
        }
        Ok(())
    }

    fn of(&self, number: u32) -> (&Inode, Place) {
        (&self.tree.inodes[number as usize], self.layout.places[number as usize])
    }

    /// Writes an inode and its attributes. An inline tail comes next.
    fn head(&mut self, number: u32, xattrs: &[u8]) -> Result<(), ErofsError> {
        let (inode, place) = self.of(number);
        let is_device = matches!(inode.kind, FileType::CharacterDevice | FileType::BlockDevice);
        let encoded = format::Inode {
            mode: inode.kind.as_raw_mode() as u16 | inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            links: inode.links,
            size: inode.size,
            mtime: inode.mtime,
            mtime_nanoseconds: inode.mtime_nanoseconds,
            data: if is_device { inode.device } else { place.block },
            inline: place.inline,
            xattrs: xattrs.len(),
            serial: number + 1,
        }
        .encode();
        self.inodes.go_to(u64::from(place.slot) * SLOT)?;
        self.inodes.put(&encoded)?;
        self.inodes.put(xattrs)
    }

    /// Like [`Self::head`], with the attributes of an open file.
    fn head_of(&mut self, number: u32, fd: &OwnedFd) -> Result<(), Failure> {
        let expected = self.of(number).0.xattrs;
        let xattrs = if expected == 0 {
            Vec::new()
        } else {
            let read = scan::xattrs(fd).map_err(|e| Failure::Source("read the attributes of", e))?;
            format::encode_xattrs(&read)
        };
        if xattrs.len() != expected as usize {
            return Err(Failure::Source("changed while it was read:", Errno::IO));
        }
        Ok(self.head(number, &xattrs)?)
    }

    fn directory(&mut self, number: u32) -> Result<(), Failure> {
        let (inode, place) = self.of(number);
        if inode.xattrs == 0 {
            self.head(number, &[])?;
        } else {
            let fd = self.tree.open_directory(number)?;
            self.head_of(number, &fd)?;
        }
        let (tree, layout) = (self.tree, self.layout);
        let entries = tree.entries_of(&tree.inodes[number as usize]);
        let blocks = format::directory_blocks(entries.iter().map(|entry| tree.name(entry).len()));
        let last = blocks.len() - 1;
        for (index, (range, _)) in blocks.into_iter().enumerate() {
            let of_block: Vec<format::Entry<'_>> = entries[range]
                .iter()
                .map(|entry| format::Entry {
                    name: tree.name(entry),
                    inode: layout.places[entry.inode as usize].slot.into(),
                    kind: tree.inodes[entry.inode as usize].kind,
                })
                .collect();
            let bytes = format::encode_entries(&of_block);
            if index == last && place.inline {
                self.inodes.put(&bytes)?;
            } else {
                self.data.go_to((u64::from(place.block) + index as u64) * BLOCK)?;
                self.data.put(&bytes)?;
            }
        }
        Ok(())
    }

    fn symlink(&mut self, number: u32, parent: &OwnedFd) -> Result<(), Failure> {
        use std::os::unix::ffi::OsStrExt;
        let (inode, place) = self.of(number);
        let name = self.tree.name(&self.tree.entries[inode.entry as usize]);
        let target = rustix::fs::readlinkat(parent, std::ffi::OsStr::from_bytes(name), Vec::new())
            .map_err(|e| Failure::Source("read", e))?
            .into_bytes();
        if target.len() as u64 != inode.size {
            return Err(Failure::Source("changed while it was read:", Errno::IO));
        }
        self.head(number, &[])?;
        if place.inline {
            return Ok(self.inodes.put(&target)?);
        }
        self.data.go_to(u64::from(place.block) * BLOCK)?;
        Ok(self.data.put(&target)?)
    }

    fn file(&mut self, number: u32, parent: &OwnedFd) -> Result<(), Failure> {
        let (inode, place) = self.of(number);
        if inode.size == 0 && inode.xattrs == 0 {
            return Ok(self.head(number, &[])?);
        }
        let name = self.tree.name(&self.tree.entries[inode.entry as usize]);
        let file = scan::open_file(parent, name).map_err(|e| Failure::Source("open", e))?;
        let (size, sparse) = (inode.size, inode.sparse);
        self.head_of(number, &file)?;
        let in_blocks = if place.inline { size - size % BLOCK } else { size };
        self.inodes.put_file(&file, in_blocks, size)?;
        if in_blocks == 0 {
            return Ok(());
        }
        let start = u64::from(place.block) * BLOCK;
        if !sparse {
            self.data.go_to(start)?;
            return if in_blocks <= BUFFER as u64 {
                self.data.put_file(&file, 0, in_blocks)
            } else {
                self.data.copy_file(&file, 0, in_blocks)
            };
        }
        let seek = |to| match rustix::fs::seek(&file, to) {
            // No data behind here.
            Err(Errno::NXIO) => Ok(size),
            other => other.map_err(|e| Failure::Source("read", e)),
        };
        let mut at = 0;
        loop {
            let data = seek(SeekFrom::Data(at))?;
            if data >= in_blocks {
                return Ok(());
            }
            at = seek(SeekFrom::Hole(data))?.min(in_blocks);
            self.data.go_to(start + data)?;
            self.data.copy_file(&file, data, at)?;
        }
    }
}
