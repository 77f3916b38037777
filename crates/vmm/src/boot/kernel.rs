//! Putting the kernel into the guest's memory: an ELF `vmlinux` or a bzImage.

use std::io::{Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{Error as LoaderError, KernelLoader, elf};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use super::layout;
use super::source::Source;
use crate::GuestMemory;

/// `e_machine` of x86-64 (System V ABI, AMD64 supplement).
const EM_X86_64: u16 = 62;
/// "HdrS" (boot protocol, `header`).
const BZIMAGE_MAGIC: u32 = 0x5372_6448;
/// The first boot protocol with `xloadflags`.
const BZIMAGE_VERSION: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const LOADED_HIGH: u8 = 1;
const SETUP_HEADER: u64 = 0x1f1;
const SECTOR: u64 = 512;
/// The 64-bit entry point of a bzImage, from where it was loaded.
const ENTRY_64: u64 = 0x200;
/// No kernel is longer, in bytes.
const MAX_SIZE: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("the kernel cannot be read")]
    Read(#[source] std::io::Error),
    #[error("this is not a kernel: neither an ELF vmlinux nor a bzImage")]
    NotAKernel,
    #[error("the kernel is for another processor architecture than x86-64")]
    Architecture,
    #[error("the kernel is too old: its boot protocol is {}.{}, and 2.12 is needed", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    #[error("the kernel has no 64-bit entry point")]
    No64BitEntry,
    #[error("the kernel's file is truncated")]
    Truncated,
    #[error("the kernel needs memory up to {needed} MiB, and the machine has {available} MiB below the hole")]
    DoesNotFit { needed: u64, available: u64 },
    #[error("the kernel's program headers make no sense")]
    Headers,
    #[error("the kernel's ELF file cannot be loaded")]
    Elf(#[source] LoaderError),
}

/// A kernel in the guest's memory.
#[derive(Debug)]
pub struct Kernel {
    pub entry: GuestAddress,
    /// The first address behind all that the kernel occupies while it starts.
    pub end: u64,
    /// A bzImage's own header, to be handed back to it.
    pub header: Option<setup_header>,
}

/// Loads a kernel.
///
/// # Errors
/// It is none, is not for this machine, or does not fit.
pub fn load(memory: &GuestMemory, mut file: Source) -> Result<Kernel, KernelError> {
    let size = file.size().map_err(KernelError::Read)?;
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == *b"\x7fELF" => load_elf(memory, &mut file, size),
        Ok(()) => load_bzimage(memory, &mut file, size),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(KernelError::NotAKernel),
        Err(error) => Err(KernelError::Read(error)),
    }
}

/// The end of the memory that begins at address 0.
fn low_end(memory: &GuestMemory) -> u64 {
    use vm_memory::GuestMemoryRegion;
    memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len)
}

fn does_not_fit(memory: &GuestMemory, end: u64) -> KernelError {
    KernelError::DoesNotFit { needed: end.div_ceil(1 << 20), available: low_end(memory) >> 20 }
}

fn load_elf(memory: &GuestMemory, file: &mut Source, size: u64) -> Result<Kernel, KernelError> {
    let mut header = [0; 64];
    read(file, &mut header, 0)?;
    let (class, byte_order) = (header[4], header[5]);
    let machine = u16::from_le_bytes([header[18], header[19]]);
    if class != 2 || byte_order != 1 || machine != EM_X86_64 {
        return Err(KernelError::Architecture);
    }
    check_segments(memory, file, size, &header)?;
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = Elf::load(memory, None, file, high).map_err(|error| match error {
        LoaderError::Elf(elf::Error::InvalidElfMagicNumber) => KernelError::NotAKernel,
        other => KernelError::Elf(other),
    })?;
    if loaded.kernel_end > low_end(memory) || loaded.kernel_load.0 >= loaded.kernel_end {
        return Err(does_not_fit(memory, loaded.kernel_end));
    }
    Ok(Kernel { entry: loaded.kernel_load, end: loaded.kernel_end, header: None })
}

/// Looks at all program headers before anything is read by them.
fn check_segments(
    memory: &GuestMemory,
    file: &Source,
    size: u64,
    header: &[u8; 64],
) -> Result<(), KernelError> {
    /// `sizeof(Elf64_Phdr)`.
    const ENTRY: usize = 56;
    const PT_LOAD: u32 = 1;
    let field = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the range has eight bytes"))
    };
    let table = field(header, 32);
    if usize::from(u16::from_le_bytes([header[54], header[55]])) != ENTRY {
        return Err(KernelError::Headers);
    }
    let count = u16::from_le_bytes([header[56], header[57]]);
    let mut segments = 0;
    for index in 0..u64::from(count) {
        let mut entry = [0; ENTRY];
        let at = table.checked_add(index * ENTRY as u64).ok_or(KernelError::Headers)?;
        if at > size {
            // What pread(2) is asked for at impossible offsets is an error of another kind.
            return Err(KernelError::Truncated);
        }
        read(file, &mut entry, at)?;
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) != PT_LOAD {
            continue;
        }
        let (offset, address) = (field(&entry, 8), field(&entry, 24));
        let (in_file, in_memory) = (field(&entry, 32), field(&entry, 40));
        if in_file > in_memory || address < layout::HIGH_MEMORY {
            return Err(KernelError::Headers);
        }
        if offset.checked_add(in_file).is_none_or(|end| end > size) {
            return Err(KernelError::Truncated);
        }
        let end = address.checked_add(in_memory).ok_or(KernelError::Headers)?;
        if end > low_end(memory) {
            return Err(does_not_fit(memory, end));
        }
        segments += 1;
    }
    if segments == 0 { Err(KernelError::Headers) } else { Ok(()) }
}

/// Loads the part of a bzImage that decompresses itself in the guest.
fn load_bzimage(memory: &GuestMemory, file: &mut Source, size: u64) -> Result<Kernel, KernelError> {
    let mut header = setup_header::default();
    read(file, header.as_mut_slice(), SETUP_HEADER).map_err(|error| match error {
        KernelError::Truncated => KernelError::NotAKernel,
        other => other,
    })?;
    let (version, sectors) = (header.version, u64::from(header.setup_sects));
    if header.header != BZIMAGE_MAGIC || header.boot_flag != 0xaa55 {
        return Err(KernelError::NotAKernel);
    }
    if version < BZIMAGE_VERSION {
        return Err(KernelError::Protocol(version));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(KernelError::No64BitEntry);
    }
    // Boot protocol: "if setup_sects is 0, the real value is 4".
    let start = (if sectors == 0 { 4 } else { sectors } + 1) * SECTOR;
    // In units of 16 bytes, and rounded up: the last unit may be short.
    let payload = u64::from(header.syssize) * 16;
    if payload == 0 || size.saturating_sub(start) + 15 < payload {
        return Err(KernelError::Truncated);
    }
    let length = (size - start).min(payload);
    let load = header.pref_address.max(layout::HIGH_MEMORY);
    let needed = u64::from(header.init_size).max(length);
    let end = load.checked_add(needed).ok_or(KernelError::Headers)?;
    if length > MAX_SIZE || end > low_end(memory) {
        return Err(does_not_fit(memory, end));
    }
    file.seek(SeekFrom::Start(start)).map_err(KernelError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(load), file, length as usize)
        .map_err(|_| KernelError::Truncated)?;
    header.code32_start = u32::try_from(load).map_err(|_| KernelError::Headers)?;
    Ok(Kernel { entry: GuestAddress(load + ENTRY_64), end, header: Some(header) })
}

fn read(file: &Source, into: &mut [u8], offset: u64) -> Result<(), KernelError> {
    file.read_exact_at(into, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => KernelError::Truncated,
        _ => KernelError::Read(error),
    })
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
