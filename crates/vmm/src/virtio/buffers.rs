//! The buffers of a descriptor chain, checked, and system calls straight into and out of them.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions, VolatileSlice};

use super::DeviceError;
use crate::GuestMemory;

/// The most pieces a chain may have: what one system call takes (`IOV_MAX`), less one for
/// [`Vectors::push_own`]. No driver needs a tenth of it.
pub(super) const MAX_PIECES: usize = 1023;

/// The bytes which a descriptor chain stands for, one piece behind the other. That they lie in the
/// guest's memory was checked; what they are the guest can change at any time, so whatever is
/// decided upon has to be copied first.
///
/// How the driver cuts a request into descriptors means nothing (2.7.4), so nothing here shows it.
pub(super) struct Buffers<'m> {
    head: u16,
    pieces: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// A chain that the device only reads.
    ///
    /// # Errors
    /// As those of [`Self::both`], or a descriptor is writable.
    pub(super) fn readable(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
    ) -> Result<Self, DeviceError> {
        match Self::both(memory, chain)? {
            (readable, writable) if writable.is_empty() => Ok(readable),
            _ => Err(DeviceError::Request("a descriptor has the wrong direction")),
        }
    }

    /// A chain that the device only writes.
    ///
    /// # Errors
    /// As those of [`Self::both`], or a descriptor is readable.
    pub(super) fn writable(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
    ) -> Result<Self, DeviceError> {
        match Self::both(memory, chain)? {
            (readable, writable) if readable.is_empty() => Ok(writable),
            _ => Err(DeviceError::Request("a descriptor has the wrong direction")),
        }
    }

    /// What the device reads, and what it then writes.
    ///
    /// # Errors
    /// A descriptor has no length, is outside of the guest's memory, or is a readable one behind a
    /// writable one (2.7.4.2); or there are too many or no last one.
    pub(super) fn both(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
    ) -> Result<(Self, Self), DeviceError> {
        let empty = || Self { head: chain.head_index(), pieces: Vec::new(), len: 0 };
        let (mut readable, mut writable) = (empty(), empty());
        let mut descriptors = 0;
        // The iterator just ends where a chain is malformed: then there is no last descriptor.
        let mut complete = false;
        for descriptor in chain {
            complete = !descriptor.has_next();
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else if writable.is_empty() {
                (&mut readable, Permissions::Read)
            } else {
                return Err(DeviceError::Request("a readable descriptor follows a writable one"));
            };
            if descriptor.len() == 0 {
                return Err(DeviceError::Request("a descriptor has no length"));
            }
            for piece in memory.get_slices(descriptor.addr(), descriptor.len() as usize, access)? {
                buffers.pieces.push(piece?);
            }
            // A chain is shorter than 4 GiB: `DescriptorChain` ends it there.
            buffers.len += descriptor.len() as usize;
            descriptors += 1;
            if descriptors.max(readable.pieces.len() + writable.pieces.len()) > MAX_PIECES {
                return Err(DeviceError::Request("a chain is too long"));
            }
        }
        if !complete {
            return Err(DeviceError::Request("a chain has no end"));
        }
        Ok((readable, writable))
    }

    /// The index by which the driver knows the chain.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The stretches of memory of which they consist: at most [`MAX_PIECES`].
    pub(super) fn pieces(&self) -> &[VolatileSlice<'m>] {
        &self.pieces
    }

    /// Copies out what begins at `offset`; returns how many bytes there were.
    pub(super) fn read_at(&self, offset: usize, into: &mut [u8]) -> usize {
        let mut done = 0;
        self.within(offset..offset.saturating_add(into.len()), |piece| {
            done += piece.copy_to(&mut into[done..]);
        });
        done
    }

    /// Copies to `offset`; returns for how many bytes there was room.
    pub(super) fn write_at(&self, offset: usize, from: &[u8]) -> usize {
        let mut done = 0;
        self.within(offset..offset.saturating_add(from.len()), |piece| {
            let len = piece.len().min(from.len() - done);
            piece.copy_from(&from[done..done + len]);
            done += len;
        });
        done
    }

    /// The pieces of a range of the bytes, as far as there are any.
    fn within(&self, range: Range<usize>, mut act: impl FnMut(VolatileSlice<'m>)) {
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.len();
            let (from, to) = (range.start.max(start), range.end.min(end));
            // Both ends lie in the piece, so there is such a subslice.
            if from < to
                && let Ok(part) = piece.subslice(from - start, to - from)
            {
                act(part);
            }
            start = end;
        }
    }
}

/// Pieces of guest memory for one vectored system call.
pub(super) struct Vectors<'m> {
    vectors: Vec<libc::iovec>,
    lives: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Vectors<'m> {
    pub(super) fn new() -> Self {
        Self { vectors: Vec::new(), lives: PhantomData }
    }

    /// Adds a range of a chain's bytes, as far as there are any.
    pub(super) fn push(&mut self, buffers: &Buffers<'m>, range: Range<usize>) {
        buffers.within(range, |piece| {
            self.vectors
                .push(libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() });
        });
    }

    /// Adds memory of our own.
    pub(super) fn push_own(&mut self, own: &'m mut [u8]) {
        self.vectors.push(libc::iovec { iov_base: own.as_mut_ptr().cast(), iov_len: own.len() });
    }

    /// readv(2).
    ///
    /// # Errors
    /// The system call's, but for `EINTR`.
    pub(super) fn read(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: each vector is a piece of guest memory that stays mapped for 'm (that is what a
        // VolatileSlice<'m> promises), or a slice borrowed mutably for 'm. No reference to guest
        // memory exists, so the kernel may write to it.
        #[allow(unsafe_code)]
        retry(|| unsafe { libc::readv(fd.as_raw_fd(), self.vectors.as_ptr(), self.count_for_call()) })
    }

    /// writev(2).
    ///
    /// # Errors
    /// The system call's, but for `EINTR`.
    pub(super) fn write(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as above; the kernel only reads.
        #[allow(unsafe_code)]
        retry(|| unsafe { libc::writev(fd.as_raw_fd(), self.vectors.as_ptr(), self.count_for_call()) })
    }

    /// preadv(2).
    ///
    /// # Errors
    /// The system call's, but for `EINTR`.
    pub(super) fn read_at(&mut self, fd: BorrowedFd<'_>, position: u64) -> io::Result<usize> {
        let position = offset(position)?;
        // SAFETY: as for `read`.
        #[allow(unsafe_code)]
        retry(|| unsafe {
            libc::preadv(fd.as_raw_fd(), self.vectors.as_ptr(), self.count_for_call(), position)
        })
    }

    /// pwritev(2).
    ///
    /// # Errors
    /// The system call's, but for `EINTR`.
    pub(super) fn write_at(&self, fd: BorrowedFd<'_>, position: u64) -> io::Result<usize> {
        let position = offset(position)?;
        // SAFETY: as for `write`.
        #[allow(unsafe_code)]
        retry(|| unsafe {
            libc::pwritev(fd.as_raw_fd(), self.vectors.as_ptr(), self.count_for_call(), position)
        })
    }

    /// sendmsg(2) without waiting, and without a signal if nobody reads.
    ///
    /// # Errors
    /// The system call's, but for `EINTR`.
    pub(super) fn send(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: zeros are a valid `msghdr` (no name, no vectors, no control data).
        #[allow(unsafe_code)]
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_ptr().cast_mut();
        message.msg_iovlen = self.vectors.len() as _;
        // SAFETY: `message` names our vectors only, which are valid as above; the kernel only reads.
        #[allow(unsafe_code)]
        retry(|| unsafe {
            libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        })
    }

    /// The kernel refuses more than `IOV_MAX` vectors, so what does not fit in an `int` as well.
    fn count_for_call(&self) -> libc::c_int {
        libc::c_int::try_from(self.vectors.len()).unwrap_or(libc::c_int::MAX)
    }
}

fn offset(position: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(position).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
