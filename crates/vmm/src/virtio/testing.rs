//! The driver's side of a device, for tests: rings in guest memory, and the thread that serves it.

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{DeviceError, Interrupt, VirtioDevice, Vrings};
use crate::GuestMemory;
use crate::seccomp::{ThreadKind, filter};

/// The guest's memory in bytes.
pub(super) const MEMORY: u64 = 64 << 20;
/// Where buffers may lie; rings are below.
pub(super) const BUFFERS: u64 = 1 << 20;

/// Flags of a descriptor (2.7.5).
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;

/// One virtqueue as a driver sees it.
pub(super) struct Ring {
    memory: GuestMemory,
    base: u64,
    size: u16,
    available: u16,
    used: u16,
    free: Vec<u16>,
    /// Per head, the descriptors of its chain.
    chains: Vec<Vec<u16>>,
}

impl Ring {
    pub(super) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        let chains = vec![Vec::new(); size.into()];
        Self { memory: memory.clone(), base, size, available: 0, used: 0, free: (0..size).collect(), chains }
    }

    pub(super) fn available_ring(&self) -> u64 {
        self.base + 0x4000
    }

    pub(super) fn used_ring(&self) -> u64 {
        self.base + 0x8000
    }

    pub(super) fn descriptor(&self, index: u16) -> u64 {
        self.base + 16 * u64::from(index)
    }

    pub(super) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_ring() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_ready(true);
        queue
    }

    /// Makes a chain of (address, length, device-writable) available, if there is room for it.
    pub(super) fn offer(&mut self, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let chain = self.free.split_off(self.free.len() - buffers.len());
        for (at, (&index, &(address, len, writable))) in chain.iter().zip(buffers).enumerate() {
            let next = chain.get(at + 1).copied();
            let flags = if writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            self.describe(index, (address, len), flags, next.unwrap_or(0));
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.publish(head);
        Some(head)
    }

    /// Writes a descriptor, whatever it says, of a buffer (address, length).
    pub(super) fn describe(&self, index: u16, (address, len): (u64, u32), flags: u16, next: u16) {
        let to = GuestAddress(self.descriptor(index));
        self.memory.write_obj(address, to).unwrap();
        self.memory.write_obj(len, GuestAddress(to.0 + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(to.0 + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(to.0 + 14)).unwrap();
    }

    /// Puts a head into the available ring, whatever it is.
    pub(super) fn publish(&mut self, head: u16) {
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(self.available_ring() + 2)).unwrap();
    }

    /// The chain that was used next: its head, and how many bytes were written to it.
    pub(super) fn completed(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, len))
    }

    /// The index of the available ring at which the device wants to be notified.
    pub(super) fn notify_at(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.used_ring() + 4 + 8 * u64::from(self.size))).unwrap()
    }

    pub(super) fn available_index(&self) -> u16 {
        self.available
    }
}

/// A device with a driver, and a loop like that of its thread.
pub(super) struct Bench<D> {
    pub(super) device: D,
    pub(super) vrings: Vrings,
    pub(super) rings: Vec<Ring>,
    pub(super) line: Arc<EventFd>,
    /// What the driver has negotiated.
    event_idx: bool,
}

impl<D: VirtioDevice> Bench<D> {
    /// A device that is not active yet.
    pub(super) fn new(device: D, features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let rings: Vec<_> = (0..)
            .zip(device.queue_sizes())
            .map(|(index, &size)| Ring::new(&memory, 0x1_0000 * (1 + index), size))
            .collect();
        let event_idx = features & (1 << 29) != 0;
        let queues = rings
            .iter()
            .map(|ring| {
                let mut queue = ring.queue();
                queue.set_event_idx(event_idx);
                queue
            })
            .collect();
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let interrupt = Interrupt::new(line.clone());
        let vrings = Vrings { memory, queues, interrupt, features };
        Self { device, vrings, rings, line, event_idx }
    }

    pub(super) fn activate(&mut self) -> Result<(), DeviceError> {
        self.device.activate(&mut self.vrings)?;
        for queue in 0..self.rings.len() {
            self.device.notified(queue, &mut self.vrings)?;
        }
        Ok(())
    }

    /// Offers a chain, and notifies the device if it wants to hear of it.
    pub(super) fn offer(
        &mut self,
        queue: usize,
        buffers: &[(u64, u32, bool)],
    ) -> Result<Option<u16>, DeviceError> {
        let before = self.rings[queue].available_index();
        let offered = self.rings[queue].offer(buffers);
        if offered.is_some() && (!self.event_idx || self.rings[queue].notify_at() == before) {
            self.device.notified(queue, &mut self.vrings)?;
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
            self.device.ready(*token, &mut self.vrings)?;
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

    /// How often the guest was interrupted since the last call.
    pub(super) fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.vrings.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.vrings.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
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
