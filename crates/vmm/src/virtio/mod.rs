//! Virtio devices, all laid out alike.
//!
//! A device is the part that knows what its requests mean. The transport (`mmio`) owns its
//! registers, queues and interrupt, and calls it under a lock: from a vCPU thread when the guest
//! reads or writes the configuration space, from the device's thread when a queue was notified or a
//! descriptor of [`VirtioDevice::sources`] is ready.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS; sections are named where a rule is from
//! one.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;

pub mod balloon;
pub mod block;
mod buffers;
pub mod entropy;
mod events;
pub mod mmio;
pub mod net;
mod queue;
#[cfg(test)]
mod testing;
pub mod vsock;

/// Device types (5, "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    Net = 1,
    Block = 2,
    Entropy = 4,
    Balloon = 5,
    Vsock = 19,
}

/// What the guest has done wrong. The device is marked as needing a reset (2.1.1) and does nothing
/// more until it gets one; the guest's other devices, and everything else, go on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("the queue is malformed")]
    Queue(#[from] virtio_queue::Error),
    #[error("a request lies outside of the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("a request is malformed: {0}")]
    Request(&'static str),
    #[error("the host's end of the device failed")]
    Host(#[from] std::io::Error),
}

/// A descriptor that the device's thread waits for until it is readable (level-triggered).
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub fd: RawFd,
    /// Given to [`VirtioDevice::ready`].
    pub token: u32,
}

/// What a driver and a device share while the device is active.
pub struct Vrings {
    pub memory: GuestMemory,
    pub queues: Vec<Queue>,
    pub interrupt: Interrupt,
    /// The features that both sides speak.
    pub features: u64,
}

impl Vrings {
    /// Interrupts the guest if it wants to hear of used buffers in this queue (2.7.7).
    ///
    /// # Errors
    /// The queue does not lie in the guest's memory.
    pub fn notify(&mut self, queue: usize) -> Result<(), DeviceError> {
        if self.queues[queue].needs_notification(&self.memory)? {
            self.interrupt.used_buffer();
        }
        Ok(())
    }
}

/// The interrupt of one device (4.2.2, `InterruptStatus`).
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    generation: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

impl Interrupt {
    const USED_BUFFER: u32 = 1;
    const CONFIGURATION: u32 = 2;

    /// An interrupt that KVM raises when `line` is written to (irqfd).
    #[must_use]
    pub fn new(line: Arc<EventFd>) -> Self {
        Self { status: Arc::default(), generation: Arc::default(), line }
    }

    pub fn used_buffer(&self) {
        self.raise(Self::USED_BUFFER);
    }

    /// The configuration space has changed.
    pub fn configuration_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(Self::CONFIGURATION);
    }

    /// The register `InterruptStatus`.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The register `InterruptACK`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The register `ConfigGeneration`: how often the configuration has changed.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Puts a snapshot's registers back, and interrupts again for what was not acknowledged.
    pub fn restore(&self, status: u32, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
        self.status.store(status, Ordering::SeqCst);
        if status != 0 {
            self.raise(0);
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // Fails only if 2^64-2 interrupts are pending, and then one more makes no difference.
        let _ = self.line.write(1);
    }
}

/// A device's own part of a snapshot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "device", rename_all = "snake_case")]
pub enum DeviceState {
    Block(block::State),
    Net(net::State),
    Vsock(vsock::State),
    Entropy,
    Balloon(balloon::State),
}

/// One virtio device behind the transport.
pub trait VirtioDevice: Send {
    fn device_type(&self) -> DeviceType;

    /// The device's own feature bits and `VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_EVENT_IDX` where it
    /// keeps to them.
    fn features(&self) -> u64;

    /// The highest size of each of its queues.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space; what lies beyond its end reads as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space; what cannot be written is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Descriptors to wait for besides the queues' notifications: the same ones for good.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// The driver is ready (`DRIVER_OK`), or a snapshot of a ready device was restored.
    ///
    /// # Errors
    /// What the driver has set up cannot be used.
    fn activate(&mut self, _vrings: &mut Vrings) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver has notified a queue. Also called for each queue after activation, so that
    /// nothing that was made available before is overlooked.
    ///
    /// # Errors
    /// The guest did wrong, or the host's end failed.
    fn notified(&mut self, queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError>;

    /// A source is readable. Only called while active; what comes meanwhile waits.
    ///
    /// # Errors
    /// The guest did wrong, or the host's end failed.
    fn ready(&mut self, _token: u32, _vrings: &mut Vrings) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What the host's end was, in words for a user, once it is gone for good: the machine ends then.
    fn gone(&self) -> Option<&'static str> {
        None
    }

    /// The driver has reset the device: forget everything it said.
    fn reset(&mut self);

    /// Whether it gets a thread of its own: its requests may wait for the host's disks.
    fn is_blocking(&self) -> bool {
        false
    }

    /// Its state, while nothing runs.
    fn save(&self) -> DeviceState;

    /// Takes a snapshot's state on; the backend is the new one.
    ///
    /// # Errors
    /// The state is another device's or makes no sense.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError>;
}

/// Reads a configuration space (2.5): what lies beyond its end reads as zeros.
fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
