//! How a machine's threads say that it has ended.

use std::fs::File;
use std::io::{self, Write};
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

/// Ends the process with any panic, in whichever thread, when it has written into `file` what happened.
/// (The usual hook would look for symbols in files, which the filters forbid.)
pub fn end_on_panic(file: File) {
    std::panic::set_hook(Box::new(move |panic| {
        write_panic(&file, panic);
        std::process::abort()
    }));
}

fn write_panic(mut file: &File, panic: &dyn std::fmt::Display) {
    let ended = Ended::Failed { message: format!("this is a bug: {panic}") };
    // There is nobody left to tell if this fails.
    if let Ok(bytes) = serde_json::to_vec(&ended) {
        let _ = file.write_all(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn a_panic_is_written_down_as_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        write_panic(&file, &"panicked at queue.rs:1:\nno such \"queue\"");
        file.rewind().unwrap();
        let mut written = Vec::new();
        file.read_to_end(&mut written).unwrap();
        let Ok(Ended::Failed { message }) = serde_json::from_slice(&written) else { panic!("{written:?}") };
        assert_eq!(message, "this is a bug: panicked at queue.rs:1:\nno such \"queue\"");
    }
}
