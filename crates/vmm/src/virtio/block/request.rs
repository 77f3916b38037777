//! One request of a block driver (5.2.6).

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress, Permissions};

use super::disk::Disk;
use super::vectored::Cursor;
use super::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use crate::GuestMemory;
use crate::virtio::DeviceError;
use crate::virtio::chain::{Buffers, Chain};

/// The most data of one request. Linux asks for no more than 1.25 MiB if nobody tells it to.
const MAX_DATA: u64 = 64 << 20;
/// `struct virtio_blk_discard_write_zeroes`.
const RANGE_LENGTH: u64 = 16;

/// The outcome that the driver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Why a request was not executed.
#[derive(Debug)]
enum Failure {
    /// The driver learns it from the status.
    Status(Status),
    /// The device needs a reset.
    Device(DeviceError),
}

impl From<io::Error> for Failure {
    /// The host's end failed (no space, a bad disk): as a real disk, it goes on.
    fn from(_: io::Error) -> Self {
        Self::Status(Status::IoError)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
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
pub struct Request<'a> {
    kind: u32,
    sector: u64,
    /// From the driver.
    input: &'a Buffers,
    /// To the driver.
    output: &'a Buffers,
    status: GuestAddress,
}

impl<'a> Request<'a> {
    /// # Errors
    /// The chain has no room for a header or a status.
    pub fn parse(memory: &GuestMemory, chain: &'a mut Chain) -> Result<Self, DeviceError> {
        let mut header = [0; 16];
        chain.readable.read_front(memory, &mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let status =
            chain.writable.pop_last_byte().ok_or(DeviceError::Request("there is no room for its status"))?;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes(sector),
            input: &chain.readable,
            output: &chain.writable,
            status,
        })
    }

    /// Where its [`Status`] goes.
    pub fn status(&self) -> GuestAddress {
        self.status
    }

    /// How many bytes it transfers.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            VIRTIO_BLK_T_IN => self.output.len(),
            VIRTIO_BLK_T_OUT => self.input.len(),
            _ => 0,
        }
    }

    /// Executes it. The status is not written yet, but counted among the written bytes.
    ///
    /// # Errors
    /// The guest's memory could not be accessed.
    pub fn execute(
        &self,
        memory: &GuestMemory,
        disk: &Disk,
        rules: &Rules,
    ) -> Result<(Status, u32), DeviceError> {
        let outcome = match self.kind {
            VIRTIO_BLK_T_IN => self.read(memory, disk),
            VIRTIO_BLK_T_OUT => self.write(memory, disk, rules),
            VIRTIO_BLK_T_FLUSH => self.flush(disk),
            VIRTIO_BLK_T_GET_ID => self.tell_id(memory, rules),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(memory, disk, rules),
            _ => Err(Failure::Status(Status::Unsupported)),
        };
        match outcome {
            Ok(written) => Ok((Status::Ok, written + 1)),
            // Only the status is surely written, and it does not lie at the front of the buffers.
            Err(Failure::Status(status)) => Ok((status, if self.output.is_empty() { 1 } else { 0 })),
            Err(Failure::Device(error)) => Err(error),
        }
    }

    fn read(&self, memory: &GuestMemory, disk: &Disk) -> Result<u32, Failure> {
        require(self.input.is_empty())?;
        let (position, length) = self.place(disk, self.output.len())?;
        let slices = self.output.slices(memory, Permissions::Write)?;
        disk.read(&mut Cursor::new(&slices), position, length)?;
        Ok(length as u32) // at most MAX_DATA
    }

    fn write(&self, memory: &GuestMemory, disk: &Disk, rules: &Rules) -> Result<u32, Failure> {
        require(self.output.is_empty() && !disk.is_read_only())?;
        let (position, length) = self.place(disk, self.input.len())?;
        let slices = self.input.slices(memory, Permissions::Read)?;
        disk.write(&mut Cursor::new(&slices), position, length)?;
        if rules.write_through {
            disk.flush()?;
        }
        Ok(0)
    }

    fn flush(&self, disk: &Disk) -> Result<u32, Failure> {
        require(self.input.is_empty() && self.output.is_empty())?;
        disk.flush()?;
        Ok(0)
    }

    fn tell_id(&self, memory: &GuestMemory, rules: &Rules) -> Result<u32, Failure> {
        require(self.input.is_empty() && self.output.len() == u64::from(VIRTIO_BLK_ID_BYTES))?;
        let mut rest = &rules.id[..];
        for buffer in self.output.iter() {
            let (part, behind) = rest.split_at(buffer.len as usize);
            memory.write_slice(part, buffer.addr).map_err(DeviceError::from)?;
            rest = behind;
        }
        Ok(VIRTIO_BLK_ID_BYTES)
    }

    /// Discards, or writes zeros.
    fn clear(&self, memory: &GuestMemory, disk: &Disk, rules: &Rules) -> Result<u32, Failure> {
        if disk.is_read_only() {
            return Err(Failure::Status(Status::IoError));
        }
        let length = self.input.len();
        require(
            self.output.is_empty()
                && length > 0
                && length.is_multiple_of(RANGE_LENGTH)
                && length <= RANGE_LENGTH * u64::from(MAX_RANGES),
        )?;
        let mut input = self.input.clone();
        let mut ranges = Vec::with_capacity(MAX_RANGES as usize);
        for _ in 0..length / RANGE_LENGTH {
            let mut range = [0; RANGE_LENGTH as usize];
            input.read_front(memory, &mut range)?;
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
    fn range(&self, disk: &Disk, range: [u8; 16]) -> Result<(u64, u64, bool), Failure> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && self.kind == VIRTIO_BLK_T_DISCARD) {
            return Err(Failure::Status(Status::Unsupported));
        }
        require(sectors > 0 && sectors <= MAX_RANGE_SECTORS)?;
        let position = sector.checked_mul(SECTOR).ok_or(Failure::Status(Status::IoError))?;
        let length = u64::from(sectors) * SECTOR;
        require(disk.contains(position, length))?;
        Ok((position, length, unmap))
    }

    /// Where on the disk data of this length belongs, in bytes.
    fn place(&self, disk: &Disk, length: u64) -> Result<(u64, u64), Failure> {
        require(length > 0 && length <= MAX_DATA && length.is_multiple_of(SECTOR))?;
        let position = self.sector.checked_mul(SECTOR).ok_or(Failure::Status(Status::IoError))?;
        require(disk.contains(position, length))?;
        Ok((position, length))
    }
}

fn require(condition: bool) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::Status(Status::IoError)) }
}
