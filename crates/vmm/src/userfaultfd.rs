//! userfaultfd(2), as far as it is needed to give memory its contents when it is first touched. By
//! raw system calls: numbers and structures are those of `linux/userfaultfd.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The host's page size on x86-64, in bytes.
pub const PAGE: usize = 4096;

const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01_u32 as libc::Ioctl;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02_u32 as libc::Ioctl;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03_u32 as libc::Ioctl;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;
/// `UFFD_EVENT_PAGEFAULT`; no other event is asked for.
const EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// What became of the first pages of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// So many bytes, which is at least a page.
    Bytes(usize),
    /// The first page was there already.
    Exists,
}

/// Faults of this process in registered memory, the kernel's own (KVM's, too) among them.
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Opens one for this process with an open `/dev/userfaultfd`: whoever could open that may have
    /// the kernel's faults, as `vm.unprivileged_userfaultfd` does not matter then.
    ///
    /// # Errors
    /// It is another file.
    pub fn new(device: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the argument is a number.
        #[allow(unsafe_code)]
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made the descriptor for us.
        #[allow(unsafe_code)]
        let faults = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        faults.call(UFFDIO_API, &mut Api { api: API, features: 0, ioctls: 0 })?;
        Ok(faults)
    }

    /// From now on, whoever touches a page of this memory that is not there waits for it. Start and
    /// length in bytes, of whole pages.
    ///
    /// # Errors
    /// The memory is not anonymous, or another descriptor has it.
    pub fn register(&self, start: u64, len: u64) -> io::Result<()> {
        let mut register = Register { range: Range { start, len }, mode: MODE_MISSING, ioctls: 0 };
        self.call(UFFDIO_REGISTER, &mut register)
    }

    /// Whoever waits goes on, and finds zeros.
    ///
    /// # Errors
    /// It is not registered.
    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        self.call(UFFDIO_UNREGISTER, &mut Range { start, len })
    }

    /// The address of the next fault; `None`: there is none yet. It is readable when there is.
    ///
    /// # Errors
    /// The process is ending.
    pub fn next(&self) -> io::Result<Option<u64>> {
        let mut message = Message::default();
        let size = size_of::<Message>();
        // SAFETY: the kernel writes at most `size` bytes, and any bytes are a `Message`.
        #[allow(unsafe_code)]
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut message).cast(), size) };
        match usize::try_from(read) {
            Ok(read) if read == size && message.event == EVENT_PAGEFAULT => Ok(Some(message.address)),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Gives pages their contents, from `start` on, and wakes who waits for them. Whole pages.
    ///
    /// # Errors
    /// It is not registered, or the host has no memory.
    pub fn copy(&self, start: u64, contents: &[u8]) -> io::Result<Given> {
        let len = contents.len() as u64;
        let mut copy = Copy { dst: start, src: contents.as_ptr() as u64, len, mode: 0, copy: 0 };
        let result = self.call(UFFDIO_COPY, &mut copy);
        given(result, copy.copy, contents.len())
    }

    /// Gives pages of zeros, likewise.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn zero(&self, start: u64, len: usize) -> io::Result<Given> {
        let range = Range { start, len: len as u64 };
        let mut zero = ZeroPage { range, mode: 0, zeropage: 0 };
        let result = self.call(UFFDIO_ZEROPAGE, &mut zero);
        given(result, zero.zeropage, len)
    }

    /// Wakes who waits for this page, which is there.
    ///
    /// # Errors
    /// It is not registered.
    pub fn wake(&self, start: u64) -> io::Result<()> {
        self.call(UFFDIO_WAKE, &mut Range { start, len: PAGE as u64 })
    }

    fn call<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request above is called with the structure that belongs to it; the only
        // memory it names besides is a slice of `copy`, read only, and registered memory, whose
        // pages that are not there nobody can have read yet.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// `EAGAIN` with a count: so far it went, and there stands a page already.
fn given(result: io::Result<()>, count: i64, asked: usize) -> io::Result<Given> {
    match (result, usize::try_from(count)) {
        (Ok(()), _) => Ok(Given::Bytes(asked)),
        (Err(error), Ok(count)) if count > 0 && error.kind() == io::ErrorKind::WouldBlock => {
            Ok(Given::Bytes(count))
        }
        (Err(error), _) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Given::Exists),
        (Err(error), _) => Err(error),
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
