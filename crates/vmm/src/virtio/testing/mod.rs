//! The driver's side of devices, for tests: queues in guest memory, well-formed and malformed
//! requests, and a device with its thread.

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestAddress;

use super::{DeviceError, VirtioDevice};
use crate::GuestMemory;
use crate::seccomp::{ThreadKind, filter};

mod driver;
mod ring;

pub(super) use driver::{Buffer, DATA, Driver, MIB};
pub(super) use ring::{NEXT, Ring, WRITE};

/// The guest's memory in bytes.
pub(super) const MEMORY: u64 = 64 << 20;
/// Where buffers may lie; rings are below.
pub(super) const BUFFERS: u64 = 1 << 20;

/// A device with a driver, and a loop like that of its thread.
pub(super) struct Bench<D> {
    pub(super) device: D,
    pub(super) driver: Driver,
}

impl<D: VirtioDevice> Bench<D> {
    /// A device that is not active yet.
    pub(super) fn new(device: D, features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let driver = Driver::new(memory, device.queue_sizes(), features);
        Self { device, driver }
    }

    pub(super) fn activate(&mut self) -> Result<(), DeviceError> {
        self.device.activate(&mut self.driver.vrings)?;
        for queue in 0..self.driver.rings.len() {
            self.device.notified(queue, &mut self.driver.vrings)?;
        }
        Ok(())
    }

    /// Offers a chain, and notifies the device if it wants to hear of it.
    pub(super) fn offer(
        &mut self,
        queue: usize,
        buffers: &[(u64, u32, bool)],
    ) -> Result<Option<u16>, DeviceError> {
        let before = self.driver.rings[queue].available_index();
        let offered = self.driver.rings[queue].offer(buffers);
        if offered.is_some() && (!self.driver.event_idx() || self.driver.rings[queue].notify_at() == before) {
            self.device.notified(queue, &mut self.driver.vrings)?;
        }
        Ok(offered)
    }

    /// Serves the sources that are ready now; tells whether there were any.
    pub(super) fn serve(&mut self) -> Result<bool, DeviceError> {
        self.serve_within(Duration::ZERO)
    }

    /// Waits for a source and serves those that are ready.
    pub(super) fn serve_within(&mut self, wait: Duration) -> Result<bool, DeviceError> {
        let sources = self.device.sources();
        let mut ready = Vec::new();
        {
            let mut fds: Vec<_> = sources
                .iter()
                .map(|source| PollFd::from_borrowed_fd(borrow(source.fd), PollFlags::IN))
                .collect();
            let timeout = Timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos().into() };
            poll(&mut fds, Some(&timeout)).unwrap();
            for (source, fd) in sources.iter().zip(&fds) {
                if fd.revents().contains(PollFlags::IN) {
                    ready.push(source.token);
                }
            }
        }
        for token in &ready {
            self.device.ready(*token, &mut self.driver.vrings)?;
        }
        Ok(!ready.is_empty())
    }

    /// Serves the device until nothing is ready; fails if that never comes (it spins).
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.serve().unwrap() {
                return;
            }
        }
        panic!("the device spins");
    }

    /// Serves the device until a condition holds.
    pub(super) fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            self.serve_within(Duration::from_millis(5)).unwrap();
        }
    }
}

/// Runs a test's device in a thread with the system call filter of device threads, and `host` beside
/// it. Since the process ends if the device does what is forbidden, it is a process of its own: this
/// test program, started again with this test only. `test` is its path.
pub(super) fn filtered<T: Send + 'static>(
    test: &str,
    prepare: impl FnOnce() -> T,
    device: impl FnOnce(T) + Send + 'static,
    host: impl FnOnce(),
) {
    const CHILD: &str = "CORACLE_FILTERED_TEST";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        let prepared = prepare();
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            filter(ThreadKind::Device).unwrap();
            device(prepared);
        });
        host();
        return thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    let test_program = std::env::current_exe().unwrap();
    let output = Command::new(test_program).args(["--exact", test]).env(CHILD, test).output().unwrap();
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
}

fn borrow(fd: std::os::fd::RawFd) -> BorrowedFd<'static> {
    // SAFETY: sources are the device's for good, and the device outlives the call that uses this.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(fd)
    }
}
