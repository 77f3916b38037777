//! A snapshot's memory, read from its file when it is first touched (userfaultfd(2)) instead of
//! mapped. Beside what a mapping does, a file that cannot be read any more is the machine's end with
//! a reason, and not the monitor's by a signal.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use model::microvm::Ended;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::ending::Ending;
use crate::seccomp::{self, ThreadKind};
use crate::userfaultfd::{Given, PAGE, Userfaultfd};

/// Read and given at once, in bytes: neighbours are mostly touched soon, too.
const BLOCK: usize = 16 * PAGE;
static ZEROS: [u8; BLOCK] = [0; BLOCK];
/// How long those who wait for memory that cannot be had are left waiting, in seconds, so that the
/// process ends before they go on. If it cannot end because it waits for them, they go on after that.
const GRACE: i64 = 1;

/// The thread that serves a machine's memory, for as long as this lives.
pub struct Pager {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Serves `memory`, which is anonymous and was never touched, from a file as large. `device` is
    /// an open `/dev/userfaultfd`.
    ///
    /// # Errors
    /// The host has no userfaultfd(2), or gives no more threads or descriptors.
    pub fn start(device: &OwnedFd, memory: &GuestMemory, file: OwnedFd, ending: Ending) -> io::Result<Self> {
        let faults = Userfaultfd::new(device.as_fd())?;
        let mut regions = Vec::new();
        let mut offset = 0;
        for region in memory.iter() {
            let region = Region { start: region.as_ptr() as u64, length: region.len(), offset };
            faults.register(region.start, region.length)?;
            offset += region.length;
            regions.push(region);
        }
        let blocks = usize::try_from(offset.div_ceil(BLOCK as u64)).map_err(io::Error::other)?;
        let mut served = Served {
            faults,
            regions,
            file: file.into(),
            given: vec![0; blocks.div_ceil(64)],
            block: vec![0; BLOCK],
        };
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let thread = std::thread::Builder::new().name("pager".into()).spawn({
            let stop = stop.clone();
            move || {
                let result = seccomp::filter(ThreadKind::Pager)
                    .map_err(io::Error::other)
                    .and_then(|()| served.serve(&stop));
                if let Err(error) = result {
                    let message = format!("the snapshot's memory cannot be read: {error}");
                    ending.tell(Ended::Failed { message });
                    let _ = wait(&[borrow(&stop)], Some(GRACE));
                    served.give_up();
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // Fails only if it is readable already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a part of the guest's memory is in this process and in the file, in bytes.
struct Region {
    start: u64,
    length: u64,
    offset: u64,
}

struct Served {
    faults: Userfaultfd,
    regions: Vec<Region>,
    file: File,
    /// A bit for each block of the file that was given.
    given: Vec<u64>,
    block: Vec<u8>,
}

impl Served {
    fn serve(&mut self, stop: &EventFd) -> io::Result<()> {
        loop {
            if wait(&[borrow(stop), self.faults.as_fd()], None)?[0] {
                return Ok(());
            }
            while let Some(address) = self.faults.next()? {
                self.give(address)?;
            }
        }
    }

    /// Gives the block in which this address is. A page that is missing once more was given back to
    /// the host meanwhile (balloon): it has no contents.
    fn give(&mut self, address: u64) -> io::Result<()> {
        let page = address & !(PAGE as u64 - 1);
        let region = self
            .regions
            .iter()
            .find(|region| address.checked_sub(region.start).is_some_and(|offset| offset < region.length));
        let region = region.ok_or(io::ErrorKind::InvalidData)?;
        // Regions are of whole blocks, as their sizes are of MiB.
        let within = (page - region.start) & !(BLOCK as u64 - 1);
        let (start, offset) = (region.start + within, region.offset + within);
        let block = (offset / BLOCK as u64) as usize;
        let (word, bit) = (&mut self.given[block / 64], 1 << (block % 64));
        if *word & bit != 0 {
            self.faults.zero(page, PAGE)?;
        } else {
            *word |= bit;
            self.file.read_exact_at(&mut self.block, offset)?;
            let is_zero = self.block == ZEROS;
            let mut done = 0;
            while done < BLOCK {
                let at = start + done as u64;
                let given = if is_zero {
                    self.faults.zero(at, BLOCK - done)
                } else {
                    self.faults.copy(at, &self.block[done..])
                };
                done += match given? {
                    Given::Bytes(bytes) => bytes,
                    Given::Exists => PAGE,
                };
            }
        }
        self.faults.wake(page)
    }

    /// Lets those go on who wait for what does not come: the machine has ended.
    fn give_up(&self) {
        for region in &self.regions {
            // Fails only if it is not registered, and then nobody waits.
            let _ = self.faults.unregister(region.start, region.length);
        }
    }
}

/// Waits until one of these is readable, or so many seconds: which are.
fn wait(fds: &[BorrowedFd<'_>], seconds: Option<i64>) -> io::Result<Vec<bool>> {
    let mut ready: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = seconds.map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 });
    match poll(&mut ready, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(ready.iter().map(|fd| !fd.revents().is_empty()).collect())
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as its owner, which is borrowed.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(event.as_raw_fd())
    }
}

#[cfg(test)]
#[path = "pager_tests.rs"]
mod tests;
