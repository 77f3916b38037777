//! Memory balloon (5.5): memory that the guest does not use goes back to the host.
//!
//! Two ways: the host asks for memory, and the guest puts pages into the balloon (inflate, deflate);
//! and the guest reports what is free by itself (free page reporting).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::queue::{self, Request, Served};
use super::{DeviceError, DeviceState, DeviceType, Interrupt, VirtioDevice, Vrings, read_space};

mod release;

#[cfg(test)]
mod tests;

use release::{release, release_pages};

/// Feature bits (5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Inflate, deflate, and three for free page reports. The standard gives reports the queue 4 whether
/// or not the queues 2 (statistics) and 3 (hints) are there (5.5.2); Linux before 6.11 leaves no gap
/// and uses 2, and some versions fall back to 3. As neither statistics nor hints are offered, a
/// driver that sets up any of them means reports.
const QUEUE_SIZES: &[u16] = &[128, 128, 128, 128, 128];
/// Pages are counted in this unit whatever the page size (5.5.6).
const PAGE_SHIFT: u32 = 12;
const PAGES_PER_MIB: u32 = 1 << (20 - PAGE_SHIFT);
/// The longest list of pages in one request, in bytes. Linux sends 1 KiB.
const MAX_LIST: usize = 64 * 1024;

/// What a snapshot keeps of a balloon, in pages of 4 KiB.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    pub target: u32,
    pub actual: u32,
}

/// A balloon.
#[derive(Default)]
pub struct Balloon {
    shared: Arc<Shared>,
}

/// What the host has to do with a balloon; usable from any thread.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// `num_pages` and `actual` of the configuration space (5.5.4).
    target: AtomicU32,
    actual: AtomicU32,
    /// Of the active device.
    interrupt: Mutex<Option<Interrupt>>,
}

impl Shared {
    fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }

    fn configuration_changed(&self) {
        if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt.configuration_changed();
        }
    }
}

impl Control {
    /// Asks the guest to put so much of its memory into the balloon, in MiB, in all. It does what
    /// it can: it keeps what it needs, and takes memory back when it runs out.
    pub fn set_target(&self, mib: u32) {
        self.0.target.store(mib.saturating_mul(PAGES_PER_MIB), Ordering::SeqCst);
        self.0.configuration_changed();
    }

    /// How much is in the balloon, in MiB, as the guest says.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst) / PAGES_PER_MIB
    }
}

impl Balloon {
    /// An empty balloon.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }

    /// The configuration space (5.5.4).
    fn config(&self) -> [u8; 8] {
        let mut space = [0; 8];
        space[..4].copy_from_slice(&self.shared.target.load(Ordering::SeqCst).to_le_bytes());
        space[4..].copy_from_slice(&self.shared.actual.load(Ordering::SeqCst).to_le_bytes());
        space
    }
}

/// Takes the pages of a list (5.5.6.1): numbers of 4 KiB pages, 4 bytes each.
fn inflate(request: &Request<'_>) -> Result<(), DeviceError> {
    let length = request.readable.len();
    if !request.writable.is_empty() || !length.is_multiple_of(4) || length > MAX_LIST {
        return Err(DeviceError::Request("not a list of pages"));
    }
    let mut list = vec![0; length];
    request.readable.read_at(0, &mut list);
    let mut pages: Vec<u64> =
        list.as_chunks().0.iter().map(|page| u64::from(u32::from_le_bytes(*page))).collect();
    pages.sort_unstable();
    for run in pages.chunk_by(|page, next| next - page <= 1) {
        let first = run[0];
        let count = run[run.len() - 1] - first + 1;
        release_pages(request.memory, first << PAGE_SHIFT, count << PAGE_SHIFT)?;
    }
    Ok(())
}

/// The guest uses pages of the balloon again. They come back as they are touched: nothing to do.
fn deflate(request: &Request<'_>) -> Result<(), DeviceError> {
    if !request.writable.is_empty() {
        return Err(DeviceError::Request("not a list of pages"));
    }
    Ok(())
}

/// Takes the contents of free memory (5.5.6.7): the request's buffers are that memory itself.
fn report(request: &Request<'_>) -> Result<(), DeviceError> {
    if !request.readable.is_empty() {
        return Err(DeviceError::Request("a report of free memory is not to be read from"));
    }
    request.writable.pieces().iter().try_for_each(|piece| Ok(release(piece)?))
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM)
            | (1 << VIRTIO_BALLOON_F_REPORTING)
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    /// Only `actual` is the driver's.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.shared.actual.load(Ordering::SeqCst).to_le_bytes();
        for (at, byte) in data.iter().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(at)?.checked_sub(4));
            if let Some(place) = at.and_then(|at| actual.get_mut(at)) {
                *place = *byte;
            }
        }
        self.shared.actual.store(u32::from_le_bytes(actual), Ordering::SeqCst);
    }

    fn activate(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.shared.set_interrupt(Some(vrings.interrupt.clone()));
        // The host may have asked while nobody listened.
        if self.shared.target.load(Ordering::SeqCst) != self.shared.actual.load(Ordering::SeqCst) {
            self.shared.configuration_changed();
        }
        Ok(())
    }

    fn notified(&mut self, queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        let reporting = vrings.features & (1 << VIRTIO_BALLOON_F_REPORTING) != 0;
        queue::serve(vrings, queue, |request| {
            match queue {
                INFLATE => inflate(&request)?,
                DEFLATE => deflate(&request)?,
                _ if reporting => report(&request)?,
                _ => return Err(DeviceError::Request("free memory is reported without the feature")),
            }
            Ok(Served::Done(0))
        })
    }

    fn reset(&mut self) {
        self.shared.set_interrupt(None);
        self.shared.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(State {
            target: self.shared.target.load(Ordering::SeqCst),
            actual: self.shared.actual.load(Ordering::SeqCst),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Balloon(state) = state else {
            return Err(DeviceError::Request("the state is another device's"));
        };
        self.shared.target.store(state.target, Ordering::SeqCst);
        self.shared.actual.store(state.actual, Ordering::SeqCst);
        Ok(())
    }
}
