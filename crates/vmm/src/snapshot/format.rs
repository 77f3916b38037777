//! The state file: a header that says what it is, and a JSON document.
//!
//! ```text
//! 0   8  "CORASNAP"
//! 8   4  version of the document, little-endian
//! 12  4  CRC-32 of the document
//! 16  8  length of the document in bytes
//! 24     the document
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};

use super::host::Processor;
use super::vcpu::VcpuState;
use crate::devices::serial;
use crate::virtio::{DeviceState, mmio};

const MAGIC: [u8; 8] = *b"CORASNAP";
/// Raised with every change to the document or to what it means.
pub const VERSION: u32 = 1;
const HEADER: usize = 24;
/// No document is longer, in bytes: 16 vCPUs need less than 1 MiB.
const MAX_DOCUMENT: u64 = 16 << 20;

/// A machine's state beside its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub host: Processor,
    pub memory_mib: u32,
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
    /// In the guest's order.
    pub devices: Vec<Device>,
    /// `None`: the machine has no serial port.
    pub serial: Option<serial::State>,
}

/// What KVM keeps of the machine as a whole.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// The two PICs and the I/O APIC.
    pub interrupt_controllers: Vec<kvm_irqchip>,
    pub timer: kvm_pit_state2,
    pub clock: kvm_clock_data,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub registers: mmio::State,
    pub device: DeviceState,
}

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("the snapshot's state cannot be read or written")]
    File(#[from] io::Error),
    #[error("this is not a snapshot")]
    NotASnapshot,
    #[error("the snapshot's state is truncated: {actual} bytes of {expected} are there")]
    Truncated { expected: u64, actual: u64 },
    #[error("the snapshot is of version {0}, and this monitor knows version {VERSION}")]
    Version(u32),
    #[error("the snapshot's state is damaged: its checksum does not hold")]
    Checksum,
    #[error("the snapshot's state is not understood")]
    Document(#[from] serde_json::Error),
}

/// Writes the state from the file's beginning on.
///
/// # Errors
/// The file cannot be written.
pub fn write(mut file: &File, snapshot: &Snapshot) -> Result<(), FormatError> {
    let document = serde_json::to_vec(snapshot)?;
    let mut bytes = Vec::with_capacity(HEADER + document.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(&document).to_le_bytes());
    bytes.extend((document.len() as u64).to_le_bytes());
    bytes.extend(document);
    file.set_len(0)?;
    file.write_all_at(&bytes, 0)?;
    file.flush()?;
    Ok(())
}

/// Reads a state.
///
/// # Errors
/// It is none, is of another version, truncated or damaged.
pub fn read(file: &File) -> Result<Snapshot, FormatError> {
    let size = file.metadata()?.len();
    let mut header = [0; HEADER];
    let there = HEADER.min(usize::try_from(size).unwrap_or(HEADER));
    file.read_exact_at(&mut header[..there], 0)?;
    let begins_well = MAGIC.iter().zip(&header[..there]).all(|(ours, theirs)| ours == theirs);
    if there == 0 || !begins_well {
        return Err(FormatError::NotASnapshot);
    }
    if there < HEADER {
        return Err(FormatError::Truncated { expected: HEADER as u64, actual: size });
    }
    let number =
        |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("the range has four bytes"));
    let (version, checksum) = (number(8), number(12));
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let length = u64::from(number(16)) | (u64::from(number(20)) << 32);
    if length > MAX_DOCUMENT {
        return Err(FormatError::Checksum);
    }
    let expected = HEADER as u64 + length;
    if size < expected {
        return Err(FormatError::Truncated { expected, actual: size });
    }
    // It fits: it is not more than MAX_DOCUMENT.
    let mut document = vec![0; length as usize];
    file.read_exact_at(&mut document, HEADER as u64)?;
    if crc32fast::hash(&document) != checksum {
        return Err(FormatError::Checksum);
    }
    Ok(serde_json::from_slice(&document)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            host: Processor::of_this_host(),
            memory_mib: 256,
            vcpus: Vec::new(),
            vm: VmState {
                interrupt_controllers: vec![kvm_irqchip::default(); 3],
                timer: kvm_pit_state2::default(),
                clock: kvm_clock_data { clock: 42, ..Default::default() },
            },
            devices: Vec::new(),
            serial: None,
        }
    }

    fn written() -> (File, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        write(&file, &snapshot()).unwrap();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (file, bytes)
    }

    #[test]
    fn a_state_survives() {
        let (file, _) = written();
        let read = read(&file).unwrap();
        assert_eq!(read.memory_mib, 256);
        assert_eq!(read.vm.clock.clock, 42);
        assert_eq!(read.host, Processor::of_this_host());
    }

    #[test]
    fn a_state_that_is_cut_anywhere_is_refused() {
        let (file, bytes) = written();
        for length in (0..bytes.len()).step_by(7).chain(0..30) {
            file.set_len(length as u64).unwrap();
            let error = read(&file).err().unwrap();
            match length {
                0 => assert!(matches!(error, FormatError::NotASnapshot), "{error}"),
                _ => assert!(matches!(error, FormatError::Truncated { .. }), "{length}: {error}"),
            }
            file.write_all_at(&bytes, 0).unwrap();
        }
    }

    #[test]
    fn a_state_that_is_damaged_anywhere_is_refused() {
        let (file, bytes) = written();
        for at in (0..bytes.len()).step_by(11).chain(0..HEADER) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            file.write_all_at(&damaged, 0).unwrap();
            assert!(read(&file).is_err(), "byte {at}");
        }
        let mut newer = bytes.clone();
        newer[8] = 2;
        file.write_all_at(&newer, 0).unwrap();
        assert!(matches!(read(&file), Err(FormatError::Version(2))));
    }
}
