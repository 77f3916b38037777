//! Transfers between a file and the guest's memory, without a copy in between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromFile,
    ToFile,
}

/// A position in the memory of a request: what lies before it has been transferred.
pub struct Cursor<'a> {
    slices: &'a [VolatileSlice<'a, ()>],
    /// Bytes of the first slice that are behind it.
    offset: usize,
    vectors: Vec<libc::iovec>,
}

impl<'a> Cursor<'a> {
    /// The most vectors that one system call takes (`UIO_MAXIOV`, readv(2)).
    const MAX_VECTORS: usize = 1024;

    pub fn new(slices: &'a [VolatileSlice<'a, ()>]) -> Self {
        Self { slices, offset: 0, vectors: Vec::with_capacity(slices.len().min(Self::MAX_VECTORS)) }
    }

    /// Transfers `count` bytes from or to `position` in `file`. There are as many in the memory.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::UnexpectedEof`] if the file has become shorter than it was.
    pub fn transfer(
        &mut self,
        direction: Direction,
        file: &File,
        mut position: u64,
        mut count: u64,
    ) -> io::Result<()> {
        while count > 0 {
            self.gather(count);
            let done = transfer_once(direction, file, position, &self.vectors)?;
            match done {
                None => continue,
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(done) => {
                    self.advance(done);
                    position += done as u64;
                    count -= done as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes `count` zeros to the memory. There is room for them.
    pub fn fill_zeros(&mut self, mut count: u64) {
        const ZEROS: &[u8] = &[0; 4096];
        while count > 0 {
            let Some(rest) = self.slices.first().and_then(|first| first.offset(self.offset).ok()) else {
                return;
            };
            let length = ZEROS.len().min(usize::try_from(count).unwrap_or(usize::MAX)).min(rest.len());
            rest.copy_from(&ZEROS[..length]);
            self.advance(length);
            count -= length as u64;
        }
    }

    /// Fills `vectors` with the next `count` bytes of the memory, or as many as one call takes.
    fn gather(&mut self, mut count: u64) {
        self.vectors.clear();
        let mut offset = self.offset;
        for slice in self.slices.iter().take(Self::MAX_VECTORS) {
            let length = ((slice.len() - offset) as u64).min(count);
            let start = slice.ptr_guard_mut().as_ptr().wrapping_add(offset);
            self.vectors.push(libc::iovec { iov_base: start.cast(), iov_len: length as usize });
            count -= length;
            offset = 0;
            if count == 0 {
                break;
            }
        }
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.slices.first() {
            let rest = first.len() - self.offset;
            if count < rest {
                self.offset += count;
                return;
            }
            count -= rest;
            self.offset = 0;
            self.slices = &self.slices[1..];
            if count == 0 {
                return;
            }
        }
    }
}

/// One system call. `None`: a signal interrupted it.
#[allow(unsafe_code)]
fn transfer_once(
    direction: Direction,
    file: &File,
    position: u64,
    vectors: &[libc::iovec],
) -> io::Result<Option<usize>> {
    let position = libc::off_t::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (fd, first) = (file.as_raw_fd(), vectors.as_ptr());
    // SAFETY: each vector is a part of a `VolatileSlice` that the caller's `Cursor` borrows, so it is
    // mapped memory of the guest, of which no Rust reference exists. The kernel copes with the guest
    // changing it meanwhile, and answers EFAULT where a mapping is gone.
    let done = unsafe {
        match direction {
            Direction::FromFile => libc::preadv(fd, first, count, position),
            Direction::ToFile => libc::pwritev(fd, first, count, position),
        }
    };
    match usize::try_from(done) {
        Ok(done) => Ok(Some(done)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
    }
}
