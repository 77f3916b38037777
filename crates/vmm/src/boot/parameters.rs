//! What the kernel is told: the zero page, its memory map, the command line and the initramfs.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::kernel::Kernel;
use super::layout;
use super::source::Source;
use crate::GuestMemory;

/// Types of memory (ACPI 6.5, 15 "System Address Map Interfaces").
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI_RECLAIMABLE: u32 = 3;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A loader without an id of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;
const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ParametersError {
    #[error("the kernel's command line is {0} bytes long, and at most {max} are possible", max = layout::COMMAND_LINE_MAX)]
    CommandLineTooLong(usize),
    #[error("the kernel's command line contains a zero byte")]
    CommandLineZero,
    #[error(
        "the initramfs ({initramfs_mib} MiB) does not fit in the memory that the kernel leaves ({left_mib} MiB)"
    )]
    InitramfsDoesNotFit { initramfs_mib: u64, left_mib: u64 },
    #[error("the initramfs cannot be read")]
    Initramfs(#[source] std::io::Error),
    #[error("the initramfs is empty")]
    InitramfsEmpty,
    #[error("the initramfs's file is truncated")]
    InitramfsTruncated(#[source] vm_memory::GuestMemoryError),
    #[error("the boot parameters do not fit in the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// The initramfs in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    pub address: u64,
    pub size: u64,
}

/// Puts the initramfs at the end of the memory below the hole.
///
/// # Errors
/// It cannot be read, or does not fit above the kernel.
pub fn load_initramfs(
    memory: &GuestMemory,
    kernel_end: u64,
    mut file: Source,
) -> Result<Initramfs, ParametersError> {
    let size = file.size().map_err(ParametersError::Initramfs)?;
    if size == 0 {
        return Err(ParametersError::InitramfsEmpty);
    }
    let low_end = memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
    let address = low_end
        .checked_sub(size)
        .map(|address| address / PAGE * PAGE)
        .filter(|&address| address >= kernel_end)
        .ok_or(ParametersError::InitramfsDoesNotFit {
            initramfs_mib: size.div_ceil(1 << 20),
            left_mib: low_end.saturating_sub(kernel_end) >> 20,
        })?;
    // The size fits: it is less than the memory's.
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(ParametersError::InitramfsTruncated)?;
    Ok(Initramfs { address, size })
}

/// The guest's memory map, in order and without overlaps.
#[must_use]
pub fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry { addr: start, size: end - start, r#type: kind };
    let mut map = vec![
        entry(0, layout::LOW_MEMORY_END, RAM),
        entry(layout::GENERATION_ID, layout::ACPI, RESERVED),
        entry(layout::ACPI, layout::ACPI_END, ACPI_RECLAIMABLE),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0;
        map.push(entry(start.max(layout::HIGH_MEMORY), start + region.len(), RAM));
    }
    map
}

/// Writes the zero page and the command line.
///
/// # Errors
/// The command line is too long or no string.
pub fn write(
    memory: &GuestMemory,
    kernel: &Kernel,
    command_line: &str,
    initramfs: Option<Initramfs>,
    acpi_rsdp: u64,
) -> Result<(), ParametersError> {
    let longest = match kernel.header {
        Some(header) if header.cmdline_size > 0 => layout::COMMAND_LINE_MAX.min(header.cmdline_size as usize),
        _ => layout::COMMAND_LINE_MAX,
    };
    if command_line.len() > longest {
        return Err(ParametersError::CommandLineTooLong(command_line.len()));
    }
    if command_line.as_bytes().contains(&0) {
        return Err(ParametersError::CommandLineZero);
    }
    memory.write_slice(command_line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(layout::COMMAND_LINE + command_line.len() as u64))?;

    let mut parameters = boot_params::default();
    if let Some(header) = kernel.header {
        parameters.hdr = header;
    } else {
        parameters.hdr.boot_flag = BOOT_FLAG;
        parameters.hdr.header = HEADER_MAGIC;
        parameters.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    }
    parameters.hdr.type_of_loader = UNDEFINED_LOADER;
    parameters.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    parameters.hdr.cmdline_size = command_line.len() as u32;
    if let Some(Initramfs { address, size }) = initramfs {
        // Both fit: the initramfs lies below the hole.
        parameters.hdr.ramdisk_image = address as u32;
        parameters.hdr.ramdisk_size = size as u32;
    }
    parameters.acpi_rsdp_addr = acpi_rsdp;
    let map = memory_map(memory);
    for (index, entry) in map.iter().enumerate() {
        parameters.e820_table[index] = *entry;
    }
    parameters.e820_entries = map.len() as u8;
    memory.write_obj(parameters, GuestAddress(layout::BOOT_PARAMS))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory;

    #[test]
    fn the_memory_map_is_ordered_and_covers_the_memory() {
        for mib in [32, 128, 3328, 4096, 65536] {
            let memory = memory::anonymous(mib).unwrap();
            let map = memory_map(&memory);
            let mut end = 0;
            let mut usable = 0;
            for entry in &map {
                let (start, size, kind) = (entry.addr, entry.size, entry.r#type);
                assert!(start >= end && size > 0, "{mib} MiB: {map:?}");
                end = start + size;
                usable += if kind == RAM { size } else { 0 };
            }
            let hidden = layout::HIGH_MEMORY - layout::LOW_MEMORY_END;
            assert_eq!(usable, u64::from(mib) * (1 << 20) - hidden);
        }
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_refused() {
        let memory = memory::anonymous(32).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let source = |file: &std::fs::File| Source::new(file.try_clone().unwrap());
        assert!(matches!(load_initramfs(&memory, 0, source(&file)), Err(ParametersError::InitramfsEmpty)));
        file.write_all(b"0707").unwrap();
        let placed = load_initramfs(&memory, 16 << 20, source(&file)).unwrap();
        assert_eq!(placed, Initramfs { address: (32 << 20) - 4096, size: 4 });
        file.set_len(17 << 20).unwrap();
        assert!(matches!(
            load_initramfs(&memory, 16 << 20, source(&file)),
            Err(ParametersError::InitramfsDoesNotFit { initramfs_mib: 17, left_mib: 16 })
        ));
    }

    #[test]
    fn a_command_line_has_bounds() {
        let memory = memory::anonymous(32).unwrap();
        let kernel = Kernel { entry: GuestAddress(0), end: 0, header: None };
        let long = "x".repeat(layout::COMMAND_LINE_MAX);
        write(&memory, &kernel, &long, None, 0).unwrap();
        let error = write(&memory, &kernel, &(long + "x"), None, 0).unwrap_err();
        assert!(matches!(error, ParametersError::CommandLineTooLong(2048)));
        assert!(matches!(write(&memory, &kernel, "a\0b", None, 0), Err(ParametersError::CommandLineZero)));
    }
}
