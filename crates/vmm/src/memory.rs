//! The guest's memory: where it lies, and what it is made of.
//!
//! ```text
//! 0            low memory, boot structures, ACPI tables (`boot::layout`)
//! 1 MiB        kernel, initramfs
//! 0xd000_0000  hole: virtio-mmio windows, I/O APIC, local APIC, KVM's own pages
//! 4 GiB        what did not fit below the hole
//! ```

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::GuestMemory;

/// Where the hole in the guest's memory begins: the first virtio-mmio window.
pub const HOLE_START: u64 = 0xd000_0000;
/// Where memory goes on after the hole.
pub const HOLE_END: u64 = 1 << 32;
/// The least memory that a machine can have, in MiB.
pub const MIN_MIB: u32 = 32;
/// The most memory that a machine can have, in MiB: 1 TiB.
pub const MAX_MIB: u32 = 1 << 20;

const MIB: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("a machine has {MIN_MIB} to {MAX_MIB} MiB of memory, not {0}")]
    Size(u32),
    #[error("the memory cannot be mapped")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    #[error("the memory cannot be mapped")]
    MapFile(#[from] vm_memory::mmap::MmapRegionError),
    #[error("the memory's layout is impossible")]
    Layout(#[from] vm_memory::GuestRegionCollectionError),
    #[error("the memory file holds {actual} bytes, but the machine has {expected}")]
    FileSize { expected: u64, actual: u64 },
    #[error("the memory file cannot be looked at")]
    File(#[from] std::io::Error),
    #[error("KVM does not accept the memory")]
    Register(#[from] kvm_ioctls::Error),
}

/// The address ranges of a machine's memory, in order; sizes in bytes.
///
/// # Errors
/// No machine has so little or so much.
pub fn ranges(mib: u32) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
    if !(MIN_MIB..=MAX_MIB).contains(&mib) {
        return Err(MemoryError::Size(mib));
    }
    let size = u64::from(mib) * MIB;
    let below = size.min(HOLE_START);
    // The sizes fit: this crate is for 64-bit hosts only.
    let mut ranges = vec![(GuestAddress(0), below as usize)];
    if size > below {
        ranges.push((GuestAddress(HOLE_END), (size - below) as usize));
    }
    Ok(ranges)
}

/// Memory that the host gives when the guest touches it.
///
/// # Errors
/// No machine has so little or so much, or the host has no room for the mapping.
pub fn anonymous(mib: u32) -> Result<GuestMemory, MemoryError> {
    Ok(GuestMemory::from_ranges(&ranges(mib)?)?)
}

/// Memory that begins as a file's contents. The guest's writes stay its own; pages it only reads
/// are shared with all who map the file.
///
/// # Errors
/// As [`anonymous`]; the file's size is not the memory's.
pub fn private_copy(mib: u32, file: OwnedFd) -> Result<GuestMemory, MemoryError> {
    let ranges = ranges(mib)?;
    let file = std::sync::Arc::new(File::from(file));
    check_size(mib, &file)?;
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, size) in ranges {
        let mapping = MmapRegion::build(
            Some(FileOffset::from_arc(file.clone(), offset)),
            size,
            libc_flags::PROT_READ | libc_flags::PROT_WRITE,
            libc_flags::MAP_PRIVATE | libc_flags::MAP_NORESERVE,
        )?;
        offset += size as u64;
        regions.push(GuestRegionMmap::new(mapping, start).ok_or(MemoryError::Size(mib))?);
    }
    Ok(GuestMemory::from_regions(regions)?)
}

/// Checks that a file holds the memory of such a machine.
///
/// # Errors
/// Its size is another one.
pub fn check_size(mib: u32, file: &File) -> Result<(), MemoryError> {
    let expected = u64::from(mib) * MIB;
    let actual = file.metadata()?.size();
    if actual == expected { Ok(()) } else { Err(MemoryError::FileSize { expected, actual }) }
}

/// mmap(2)'s numbers, which vm-memory wants raw.
mod libc_flags {
    use rustix::mm::{MapFlags, ProtFlags};

    pub const PROT_READ: i32 = ProtFlags::READ.bits() as i32;
    pub const PROT_WRITE: i32 = ProtFlags::WRITE.bits() as i32;
    pub const MAP_PRIVATE: i32 = MapFlags::PRIVATE.bits() as i32;
    pub const MAP_NORESERVE: i32 = MapFlags::NORESERVE.bits() as i32;
}

/// Gives the memory to the virtual machine.
///
/// # Errors
/// KVM refuses it.
#[allow(unsafe_code)]
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `memory` or a clone of it lives, which the
        // machine keeps beside `vm`; regions do not overlap.
        unsafe { vm.set_user_memory_region(description)? };
    }
    Ok(())
}

/// The memory's size in MiB.
#[must_use]
pub fn size_mib(memory: &GuestMemory) -> u32 {
    let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    (bytes / MIB) as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_lies_around_the_hole() {
        assert_eq!(ranges(128).unwrap(), [(GuestAddress(0), 128 << 20)]);
        assert_eq!(ranges(3328).unwrap(), [(GuestAddress(0), HOLE_START as usize)]);
        assert_eq!(
            ranges(4096).unwrap(),
            [(GuestAddress(0), HOLE_START as usize), (GuestAddress(HOLE_END), 768 << 20)]
        );
        assert!(matches!(ranges(0), Err(MemoryError::Size(0))));
        assert!(matches!(ranges(u32::MAX), Err(MemoryError::Size(_))));
    }

    #[test]
    fn writes_to_a_private_copy_do_not_reach_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"from the file").unwrap();
        file.set_len(32 << 20).unwrap();
        let memory = private_copy(32, file.try_clone().unwrap().into()).unwrap();
        let mut read = [0; 13];
        memory.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert_eq!(&read, b"from the file");
        memory.write_slice(b"FROM", GuestAddress(0)).unwrap();
        let again = private_copy(32, file.into()).unwrap();
        again.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert_eq!(&read, b"from the file");
    }

    #[test]
    fn a_memory_file_of_another_size_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for size in [0, 4096, (32 << 20) - 1, (32 << 20) + 1, 64 << 20] {
            file.set_len(size).unwrap();
            let error = private_copy(32, file.try_clone().unwrap().into()).unwrap_err();
            let MemoryError::FileSize { expected, actual } = error else { panic!("{error}") };
            assert_eq!((expected, actual), (32 << 20, size));
        }
    }
}
