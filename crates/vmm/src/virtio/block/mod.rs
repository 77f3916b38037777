//! Block device (5.2): a disk whose contents are files of the host.
//!
//! Requests are executed one after the other in the device's own thread, with `preadv` and `pwritev`
//! straight between the host's page cache and the guest's memory.

use std::fs::File;
use std::io;

use model::microvm::RateLimit;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::queue::{self, Served};
use super::{DeviceError, DeviceState, DeviceType, Source, VirtioDevice, Vrings, read_space};
use crate::rate_limiter::RateLimiter;

mod disk;
#[cfg(test)]
mod measure;
mod request;
mod transfer;

#[cfg(test)]
mod tests;

use disk::Disk;
use request::{Request, Rules};

/// In bytes: the unit of positions, capacity and lengths (5.2.4), and the block size told to the
/// guest. Partitions in the guest begin at multiples of it.
pub const SECTOR: u64 = 512;

/// One queue, because one thread serves it: a second would only be a second line before the same
/// counter. 256 descriptors carry 85 requests of one buffer, more than one thread has use for.
const QUEUE_SIZES: &[u16] = &[256];
/// What is left of a chain as long as the queue, beside its header and its status.
const MAX_DATA_BUFFERS: u32 = 254;
/// Sectors in one segment of a discard or a write of zeros: 2 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 22;
const MAX_RANGES: usize = 32;
/// Discarding anything smaller than a page of the host frees nothing.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

const TIMER: u32 = 0;

/// What a snapshot keeps of a disk.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    pub read_only: bool,
}

/// A disk.
pub struct Block {
    disk: Disk,
    id: [u8; 20],
    limiter: RateLimiter,
    /// The guest, restored from a snapshot, believes another capacity.
    capacity_changed: bool,
}

impl Block {
    /// A disk of the contents of `parts`, laid out as [`model::microvm::Disk::parts`] says; their
    /// sizes are read now and are for good. The guest can ask for `id` (padded with zeros).
    ///
    /// # Errors
    /// A part is neither a regular file nor a block device, or cannot be seeked. A part of a
    /// writable disk does not have a multiple of 4 KiB, or is not open for writing at any position.
    pub fn new(
        parts: Vec<File>,
        read_only: bool,
        limit: Option<RateLimit>,
        id: [u8; 20],
    ) -> io::Result<Self> {
        Ok(Self {
            disk: Disk::new(parts, read_only)?,
            id,
            limiter: RateLimiter::new(limit)?,
            capacity_changed: false,
        })
    }

    /// The size, in sectors of 512 bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.disk.size() / SECTOR
    }

    /// The configuration space (5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put =
            |offset: usize, value: &[u8]| space[offset..offset + value.len()].copy_from_slice(value);
        put(0, &self.capacity().to_le_bytes());
        put(12, &MAX_DATA_BUFFERS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        if !self.disk.is_read_only() {
            put(36, &MAX_RANGE_SECTORS.to_le_bytes());
            put(40, &(MAX_RANGES as u32).to_le_bytes());
            put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
            put(48, &MAX_RANGE_SECTORS.to_le_bytes());
            put(52, &(MAX_RANGES as u32).to_le_bytes());
            put(56, &[1]); // write_zeroes_may_unmap
        }
        space
    }

    fn serve(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        if self.limiter.is_blocked() {
            return Ok(());
        }
        let rules = Rules {
            id: self.id,
            // Without flushes the driver takes a write for stable once it is done (5.2.6.2).
            write_through: vrings.features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
        };
        let Self { disk, limiter, .. } = self;
        queue::serve(vrings, 0, |request| {
            let request = Request::parse(request)?;
            if !limiter.take(request.bytes())? {
                return Ok(Served::Later);
            }
            Ok(Served::Done(request.execute(disk, &rules)))
        })
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let common = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_BLK_F_SEG_MAX)
            | (1 << VIRTIO_BLK_F_BLK_SIZE);
        let own = if self.disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            (1 << VIRTIO_BLK_F_FLUSH) | (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
        };
        common | own
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    fn sources(&self) -> Vec<Source> {
        self.limiter.source(TIMER).into_iter().collect()
    }

    fn activate(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        if std::mem::take(&mut self.capacity_changed) {
            vrings.interrupt.configuration_changed();
        }
        Ok(())
    }

    fn notified(&mut self, _queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.serve(vrings)
    }

    fn ready(&mut self, _token: u32, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.limiter.expired()?;
        self.serve(vrings)
    }

    fn reset(&mut self) {
        self.limiter.forget();
        self.capacity_changed = false;
    }

    fn is_blocking(&self) -> bool {
        true
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(State { capacity: self.capacity(), read_only: self.disk.is_read_only() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Block(state) = state else {
            return Err(DeviceError::Request("the state is another device's"));
        };
        if state.read_only != self.disk.is_read_only() {
            return Err(DeviceError::Request("a disk's being read-only cannot change"));
        }
        self.capacity_changed = state.capacity != self.capacity();
        Ok(())
    }
}
