//! How a machine's threads say that it has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use model::microvm::Ended;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Shared by all threads. The first end is the end.
#[derive(Clone)]
pub struct Ending {
    inner: Arc<Inner>,
}

struct Inner {
    ended: Mutex<Option<Ended>>,
    event: EventFd,
}

impl Ending {
    /// # Errors
    /// The host gives no more descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { inner: Arc::new(Inner { ended: Mutex::new(None), event }) })
    }

    /// The machine has ended.
    pub fn tell(&self, ended: Ended) {
        let mut slot = self.inner.ended.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(ended);
        // Fails only if it is readable already.
        let _ = self.inner.event.write(1);
    }

    #[must_use]
    pub fn get(&self) -> Option<Ended> {
        self.inner.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells of a panic when it is dropped by one.
    #[must_use]
    pub fn on_panic(&self, thread: &'static str) -> PanicGuard {
        PanicGuard { ending: self.clone(), thread }
    }
}

impl AsFd for Ending {
    /// Readable as soon as the machine has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open for as long as `self`.
        unsafe {
            BorrowedFd::borrow_raw(self.inner.event.as_raw_fd())
        }
    }
}

pub struct PanicGuard {
    ending: Ending,
    thread: &'static str,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let message = format!("the monitor's {} thread failed; this is a bug", self.thread);
            self.ending.tell(Ended::Failed { message });
        }
    }
}
