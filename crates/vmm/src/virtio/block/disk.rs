//! The contents of a disk: files, one behind the other.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use model::microvm::PART_ALIGNMENT;
use rustix::fs::{FallocateFlags, FileType, OFlags, fallocate, fcntl_getfl, fdatasync, fstat};
use rustix::io::Errno;

use super::transfer::Cursor;

struct Part {
    file: File,
    /// In bytes, on the disk.
    start: u64,
    /// One past its last byte. The gap behind it reads as zeros.
    end: u64,
}

/// Positions and lengths are in bytes and, where not said otherwise, lie on the disk: callers ask
/// [`Disk::contains`] first.
pub struct Disk {
    /// In the order of their positions; none is empty.
    parts: Vec<Part>,
    /// A multiple of [`PART_ALIGNMENT`].
    size: u64,
    read_only: bool,
}

/// A piece of a range: in a file at this position, or in a gap.
struct Piece<'a> {
    file: Option<(&'a File, u64)>,
    length: u64,
}

impl Disk {
    pub fn new(files: Vec<File>, read_only: bool) -> io::Result<Self> {
        let mut parts = Vec::with_capacity(files.len());
        let mut size: u64 = 0;
        for mut file in files {
            check_kind(&file)?;
            let length = file.seek(SeekFrom::End(0))?;
            if !read_only {
                check_writable(&file, length)?;
            }
            if length == 0 {
                continue;
            }
            let end = size.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
            parts.push(Part { file, start: size, end });
            size = end.checked_next_multiple_of(PART_ALIGNMENT).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Ok(Self { parts, size, read_only })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Puts a file in place of the first part that [`Disk::new`] would not take.
    #[cfg(test)]
    pub fn replace_file(&mut self, file: File) {
        self.parts[0].file = file;
    }

    /// Whether the range lies on the disk.
    pub fn contains(&self, position: u64, length: u64) -> bool {
        position.checked_add(length).is_some_and(|end| end <= self.size)
    }

    pub fn read(&self, memory: &mut Cursor<'_, '_>, position: u64, length: u64) -> io::Result<()> {
        for piece in self.pieces(position, length) {
            match piece.file {
                Some((file, at)) => memory.read(file, at, piece.length)?,
                None => memory.fill_zeros(piece.length),
            }
        }
        Ok(())
    }

    pub fn write(&self, memory: &mut Cursor<'_, '_>, position: u64, length: u64) -> io::Result<()> {
        self.each_writable(position, length, |file, at, length| memory.write(file, at, length))
    }

    /// What was written stays, whatever happens to the host.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.parts.iter().try_for_each(|part| Ok(fdatasync(&part.file)?))
    }

    /// The guest does not need this range's contents any more: they are given back to the host if
    /// its file system can.
    pub fn discard(&self, position: u64, length: u64) -> io::Result<()> {
        self.each_writable(position, length, |file, at, length| {
            match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
                Err(Errno::OPNOTSUPP) => Ok(()),
                other => Ok(other?),
            }
        })
    }

    /// This range reads as zeros from now on. `unmap`: its space may be given back to the host.
    pub fn zero(&self, position: u64, length: u64, unmap: bool) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        // A file system that knows only one of the two (tmpfs: holes): what it reads as is the same.
        let (first, second) = if unmap { (punch, zero) } else { (zero, punch) };
        self.each_writable(position, length, |file, at, length| match fallocate(file, first, at, length) {
            Err(Errno::OPNOTSUPP) => Ok(fallocate(file, second, at, length)?),
            other => Ok(other?),
        })
    }

    fn each_writable(
        &self,
        position: u64,
        length: u64,
        mut change: impl FnMut(&File, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        for piece in self.pieces(position, length) {
            // A writable disk has no gaps: `check_writable`.
            let (file, at) = piece.file.ok_or(io::ErrorKind::InvalidInput)?;
            change(file, at, piece.length)?;
        }
        Ok(())
    }

    /// The range, cut at the ends of parts. It is empty where the range does not lie on the disk.
    fn pieces(&self, mut position: u64, length: u64) -> impl Iterator<Item = Piece<'_>> {
        let end = if self.contains(position, length) { position + length } else { position };
        let mut next = self.parts.partition_point(|part| part.end <= position);
        std::iter::from_fn(move || {
            if position >= end {
                return None;
            }
            let part = self.parts.get(next);
            let piece = match part {
                Some(part) if part.start <= position => {
                    next += 1;
                    let length = part.end.min(end) - position;
                    Piece { file: Some((&part.file, position - part.start)), length }
                }
                _ => Piece { file: None, length: part.map_or(end, |part| part.start.min(end)) - position },
            };
            position += piece.length;
            Some(piece)
        })
    }
}

fn check_kind(file: &File) -> io::Result<()> {
    match FileType::from_raw_mode(fstat(file)?.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device")),
    }
}

fn check_writable(file: &File, length: u64) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    // With O_APPEND, pwrite(2) writes at the end whatever position it is given.
    if !matches!(flags & OFlags::RWMODE, OFlags::RDWR) || flags.contains(OFlags::APPEND) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not open for reading and writing"));
    }
    // Else the guest could write to the gap behind it.
    if !length.is_multiple_of(PART_ALIGNMENT) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its size is not a multiple of 4 KiB"));
    }
    Ok(())
}
