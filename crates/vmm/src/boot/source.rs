//! Reading a file by position: its offset is shared with whoever else was handed the open file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

const CHUNK: usize = 256 * 1024;

/// A file with an offset of our own.
pub struct Source {
    file: File,
    offset: u64,
    chunk: Vec<u8>,
}

impl Source {
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, offset: 0, chunk: Vec::new() }
    }

    /// # Errors
    /// The file cannot be looked at.
    pub fn size(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills `into` from a place in the file, without moving.
    ///
    /// # Errors
    /// As [`FileExt::read_exact_at`].
    pub fn read_exact_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(into, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.size()?.checked_add_signed(by),
            SeekFrom::Current(by) => self.offset.checked_add_signed(by),
        };
        self.offset = target.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.offset)
    }
}

impl ReadVolatile for Source {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        into: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.chunk.resize(CHUNK, 0);
        let wanted = into.len().min(CHUNK);
        let read = self
            .file
            .read_at(&mut self.chunk[..wanted], self.offset)
            .map_err(VolatileMemoryError::IOError)?;
        self.offset += read as u64;
        into.copy_from(&self.chunk[..read]);
        Ok(read)
    }
}
