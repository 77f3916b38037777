//! Many descriptors behind one: what a device with a changing set of them gives its thread to wait
//! for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
pub(super) use rustix::event::epoll::EventFlags;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

/// An epoll(7) instance, itself readable when one of its descriptors is ready, and a means to be
/// called again after a piece of work, so that no guest keeps its device's thread for good.
///
/// Descriptors are edge-triggered: the device notes that one is ready until it answers `EAGAIN`. So
/// nothing spins while there is no room or no credit for what could be read.
pub(super) struct Events {
    epoll: OwnedFd,
    again: OwnedFd,
}

/// The key that [`Events::call_again`] makes ready.
pub(super) const AGAIN: u64 = u64::MAX;
/// The most events taken at once.
const BATCH: usize = 64;

impl Events {
    /// # Errors
    /// The process may have no more open files.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Nobody reads it: each write is an edge.
        let again = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let events = Self { epoll, again };
        events.add(&events.again, AGAIN, EventFlags::IN)?;
        Ok(events)
    }

    /// Waits for a descriptor as well, until it is closed. `key` is any number but [`AGAIN`].
    ///
    /// # Errors
    /// epoll_ctl(2): out of memory, or not a descriptor that can be waited for.
    pub(super) fn add(&self, fd: &impl AsFd, key: u64, what: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(key), what | EventFlags::ET)?)
    }

    /// Waits for something else of a descriptor, and tells anew what it is ready for already.
    ///
    /// # Errors
    /// epoll_ctl(2): out of memory, or it was not added.
    pub(super) fn change(&self, fd: &impl AsFd, key: u64, what: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(key), what | EventFlags::ET)?)
    }

    /// Makes [`AGAIN`] ready.
    pub(super) fn call_again(&self) {
        // Fails only when 2^64-2 calls were made.
        let _ = rustix::io::write(&self.again, &1_u64.to_ne_bytes());
    }

    /// What has become ready, without waiting. There may be more than it returns: then the
    /// descriptor is still readable.
    ///
    /// # Errors
    /// None that a valid instance could give.
    pub(super) fn take(&self) -> io::Result<Vec<(u64, EventFlags)>> {
        let mut ready: Vec<Event> = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&Timespec::default())) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(ready.iter().map(|event| (event.data.u64(), event.flags)).collect())
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
