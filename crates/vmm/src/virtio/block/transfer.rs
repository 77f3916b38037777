//! Transfers between a file and the guest's memory, without a copy in between.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use crate::virtio::buffers::{Buffers, Vectors};

/// A position in the data of a request: what lies before it has been transferred.
pub struct Cursor<'b, 'm> {
    data: &'b Buffers<'m>,
    rest: Range<usize>,
}

impl<'b, 'm> Cursor<'b, 'm> {
    /// At the front of this part of a request.
    pub fn new(data: &'b Buffers<'m>, part: Range<usize>) -> Self {
        Self { data, rest: part }
    }

    /// Transfers `count` bytes from `position` in `file`.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::UnexpectedEof`] if the file has become shorter than it was.
    pub fn read(&mut self, file: &File, position: u64, count: u64) -> io::Result<()> {
        self.transfer(file, position, count, Vectors::read_at)
    }

    /// Transfers `count` bytes to `position` in `file`.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&mut self, file: &File, position: u64, count: u64) -> io::Result<()> {
        self.transfer(file, position, count, |vectors, file, position| vectors.write_at(file, position))
    }

    fn transfer(
        &mut self,
        file: &File,
        mut position: u64,
        count: u64,
        call: impl Fn(&mut Vectors<'m>, BorrowedFd<'_>, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let end = self.end_of(count);
        while self.rest.start < end {
            let mut vectors = Vectors::new();
            vectors.push(self.data, self.rest.start..end);
            match call(&mut vectors, file.as_fd(), position)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                done => {
                    self.rest.start += done;
                    position += done as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes `count` zeros to the memory.
    pub fn fill_zeros(&mut self, count: u64) {
        const ZEROS: &[u8] = &[0; 4096];
        let end = self.end_of(count);
        while self.rest.start < end {
            let length = ZEROS.len().min(end - self.rest.start);
            self.data.write_at(self.rest.start, &ZEROS[..length]);
            self.rest.start += length;
        }
    }

    /// Where `count` bytes from here end, or the data does.
    fn end_of(&self, count: u64) -> usize {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.rest.start.saturating_add(count).min(self.rest.end)
    }
}
