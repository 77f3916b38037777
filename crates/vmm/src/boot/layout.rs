//! Where the boot structures lie in the guest's first MiB. Addresses are guest-physical.

/// The global descriptor table of the boot processor.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, the "zero page".
pub const BOOT_PARAMS: u64 = 0x7000;
/// The top of the boot processor's first stack.
pub const STACK_TOP: u64 = 0x8ff0;
/// Page tables that map the first 4 GiB onto themselves: PML4, PDPT and four page directories.
pub const PML4: u64 = 0x9000;
pub const PDPT: u64 = 0xa000;
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line without its final zero; the kernel's `COMMAND_LINE_SIZE` less one.
pub const COMMAND_LINE_MAX: usize = 2047;
/// The end of usable low memory.
pub const LOW_MEMORY_END: u64 = 0x9_f000;
/// The VM generation id, 16 bytes in a reserved page.
pub const GENERATION_ID: u64 = 0x9_f000;
/// ACPI tables, up to 1 MiB.
pub const ACPI: u64 = 0xe_0000;
pub const ACPI_END: u64 = 0x10_0000;
/// The first address of memory that the kernel and the initramfs may be loaded to.
pub const HIGH_MEMORY: u64 = 0x10_0000;
