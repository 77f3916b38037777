//! One request of a block driver (5.2.6).

use std::io;
use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::Disk;
use super::transfer::Cursor;
use super::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use crate::virtio::DeviceError;
use crate::virtio::buffers::Buffers;
use crate::virtio::queue;

/// The most data of one request. Linux asks for no more than 1.25 MiB if nobody tells it to.
const MAX_DATA: u64 = 64 << 20;
/// In bytes, of a request's header and of a `struct virtio_blk_discard_write_zeroes`.
const HEADER: usize = 16;
const RANGE: usize = 16;

/// The outcome that the driver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

impl From<io::Error> for Status {
    /// The host's end failed (no space, a bad disk): as with a real disk, the driver learns of it.
    fn from(_: io::Error) -> Self {
        Self::IoError
    }
}

/// What a request is executed by, besides the disk.
pub struct Rules {
    pub id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// A write is stable when it is done.
    pub write_through: bool,
}

/// A request, taken apart: a header (type, reserved, sector) in front of the readable bytes, a status
/// behind the writable ones, and data between.
pub struct Request<'m> {
    kind: u32,
    sector: u64,
    readable: Buffers<'m>,
    writable: Buffers<'m>,
}

impl<'m> Request<'m> {
    /// # Errors
    /// The request has no room for a header or a status.
    pub fn parse(request: queue::Request<'m>) -> Result<Self, DeviceError> {
        let queue::Request { readable, writable, .. } = request;
        let mut header = [0; HEADER];
        if readable.read_at(0, &mut header) < HEADER {
            return Err(DeviceError::Request("a block request has no room for its header"));
        }
        if writable.is_empty() {
            return Err(DeviceError::Request("a block request has no room for its status"));
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        Ok(Self { kind, sector: u64::from_le_bytes(sector), readable, writable })
    }

    /// Where among the readable bytes the data from the driver is.
    fn input(&self) -> Range<usize> {
        HEADER..self.readable.len()
    }

    /// Where among the writable bytes the data to the driver belongs.
    fn output(&self) -> Range<usize> {
        0..self.writable.len() - 1
    }

    /// How many bytes it transfers.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            VIRTIO_BLK_T_IN => self.output().len() as u64,
            VIRTIO_BLK_T_OUT => self.input().len() as u64,
            _ => 0,
        }
    }

    /// Executes it and tells the driver its status. Returns how many bytes are written for sure
    /// at the front of the writable ones.
    pub fn execute(&self, disk: &Disk, rules: &Rules) -> u32 {
        let outcome = match self.kind {
            VIRTIO_BLK_T_IN => self.read(disk),
            VIRTIO_BLK_T_OUT => self.write(disk, rules),
            VIRTIO_BLK_T_FLUSH => self.flush(disk),
            VIRTIO_BLK_T_GET_ID => self.tell_id(rules),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(disk, rules),
            _ => Err(Status::Unsupported),
        };
        let (status, written) = match outcome {
            Ok(written) => (Status::Ok, written + 1),
            Err(status) => (status, u32::from(self.output().is_empty())),
        };
        self.writable.write_at(self.output().end, &[status as u8]);
        written
    }

    fn read(&self, disk: &Disk) -> Result<u32, Status> {
        require(self.input().is_empty())?;
        let (position, length) = self.place(disk)?;
        disk.read(&mut Cursor::new(&self.writable, self.output()), position, length)?;
        Ok(length as u32) // at most MAX_DATA
    }

    fn write(&self, disk: &Disk, rules: &Rules) -> Result<u32, Status> {
        require(self.output().is_empty() && !disk.is_read_only())?;
        let (position, length) = self.place(disk)?;
        disk.write(&mut Cursor::new(&self.readable, self.input()), position, length)?;
        if rules.write_through {
            disk.flush()?;
        }
        Ok(0)
    }

    fn flush(&self, disk: &Disk) -> Result<u32, Status> {
        require(self.input().is_empty() && self.output().is_empty())?;
        disk.flush()?;
        Ok(0)
    }

    fn tell_id(&self, rules: &Rules) -> Result<u32, Status> {
        require(self.input().is_empty() && self.output().len() == rules.id.len())?;
        self.writable.write_at(0, &rules.id);
        Ok(VIRTIO_BLK_ID_BYTES)
    }

    /// Discards, or writes zeros.
    fn clear(&self, disk: &Disk, rules: &Rules) -> Result<u32, Status> {
        let input = self.input();
        require(!disk.is_read_only() && self.output().is_empty())?;
        require(!input.is_empty() && input.len().is_multiple_of(RANGE) && input.len() / RANGE <= MAX_RANGES)?;
        let mut ranges = Vec::with_capacity(MAX_RANGES);
        for offset in input.step_by(RANGE) {
            let mut range = [0; RANGE];
            self.readable.read_at(offset, &mut range);
            ranges.push(self.range(disk, range)?);
        }
        // All or nothing: every range was checked before the first is changed.
        for (position, length, unmap) in ranges {
            if self.kind == VIRTIO_BLK_T_DISCARD {
                disk.discard(position, length)?;
            } else {
                disk.zero(position, length, unmap)?;
            }
        }
        if rules.write_through {
            disk.flush()?;
        }
        Ok(0)
    }

    /// Position and length of a range, in bytes, and whether its space may be given back.
    fn range(&self, disk: &Disk, range: [u8; RANGE]) -> Result<(u64, u64, bool), Status> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && self.kind == VIRTIO_BLK_T_DISCARD) {
            return Err(Status::Unsupported);
        }
        require(sectors > 0 && sectors <= MAX_RANGE_SECTORS)?;
        let position = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let length = u64::from(sectors) * SECTOR;
        require(disk.contains(position, length))?;
        Ok((position, length, unmap))
    }

    /// Where on the disk its data belongs: position and length, in bytes.
    fn place(&self, disk: &Disk) -> Result<(u64, u64), Status> {
        let length = self.bytes();
        require(length > 0 && length <= MAX_DATA && length.is_multiple_of(SECTOR))?;
        let position = self.sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        require(disk.contains(position, length))?;
        Ok((position, length))
    }
}

fn require(condition: bool) -> Result<(), Status> {
    if condition { Ok(()) } else { Err(Status::IoError) }
}
