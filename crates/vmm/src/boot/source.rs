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
        // To the end: guest memory takes a short read for the end of the file.
        self.chunk.resize(CHUNK, 0);
        let mut done = 0;
        while done < into.len() {
            let wanted = (into.len() - done).min(CHUNK);
            let read = self
                .file
                .read_at(&mut self.chunk[..wanted], self.offset)
                .map_err(VolatileMemoryError::IOError)?;
            if read == 0 {
                break;
            }
            into.subslice(done, read)?.copy_from(&self.chunk[..read]);
            self.offset += read as u64;
            done += read;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn a_file_longer_than_a_chunk_is_read_whole_wherever_its_own_offset_is() {
        let contents: Vec<u8> = (0..CHUNK * 3 + 5).map(|at| (at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &contents).unwrap();
        let memory = crate::memory::anonymous(32).unwrap();
        let mut source = Source::new(file);
        source.seek(SeekFrom::Start(1)).unwrap();
        memory.read_exact_volatile_from(GuestAddress(7), &mut source, contents.len() - 1).unwrap();
        let mut read = vec![0; contents.len() - 1];
        memory.read_slice(&mut read, GuestAddress(7)).unwrap();
        assert!(read == contents[1..]);
        let more = memory.read_exact_volatile_from(GuestAddress(0), &mut source, 1);
        assert!(more.is_err());
    }
}
