//! Files that are no kernels, and a few that are.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::memory;

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn try_load(bytes: &[u8]) -> Result<Kernel, KernelError> {
    load(&memory::anonymous(64).unwrap(), Source::new(file(bytes)))
}

/// An ELF file with one loadable segment of `contents` at 2 MiB.
fn elf(contents: &[u8], in_memory: u64) -> Vec<u8> {
    let mut bytes = vec![0; 0x1000];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
    bytes[20] = 1;
    bytes[24..32].copy_from_slice(&0x20_0010_u64.to_le_bytes());
    bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
    bytes[52..58].copy_from_slice(&[64, 0, 56, 0, 1, 0]);
    let header = &mut bytes[64..120];
    header[0] = 1;
    header[8..16].copy_from_slice(&0x1000_u64.to_le_bytes());
    header[24..32].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    header[32..40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
    header[40..48].copy_from_slice(&in_memory.to_le_bytes());
    bytes.extend(contents);
    bytes
}

/// A bzImage whose 64-bit part is `contents`.
fn bzimage(contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 2 * 512];
    bytes[0x1f1] = 1;
    bytes[0x1f4..0x1f8].copy_from_slice(&(contents.len().div_ceil(16) as u32).to_le_bytes());
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x236] = 1;
    bytes[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    bytes.extend(contents);
    bytes
}

#[test]
fn an_elf_kernel_is_loaded() {
    let memory = memory::anonymous(64).unwrap();
    let kernel = load(&memory, Source::new(file(&elf(b"code", 0x3000)))).unwrap();
    assert_eq!((kernel.entry, kernel.end), (GuestAddress(0x20_0010), 0x20_3000));
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0x20_0000)).unwrap(), *b"code");
}

#[test]
fn a_bzimage_is_loaded() {
    let memory = memory::anonymous(64).unwrap();
    let kernel = load(&memory, Source::new(file(&bzimage(&[0x90; 1600])))).unwrap();
    assert_eq!((kernel.entry, kernel.end), (GuestAddress(0x100_0200), 0x110_0000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x100_0000 + 1599)).unwrap(), 0x90);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x100_0000 + 1600)).unwrap(), 0);
}

#[test]
fn what_is_no_kernel_is_told() {
    for bytes in [&b""[..], b"MZ", b"#!/bin/sh\n", &[0; 4096], &[0xff; 600]] {
        let error = try_load(bytes).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel), "{error}");
    }
}

#[test]
fn kernels_of_other_machines_are_told() {
    let good = elf(b"code", 4);
    for (at, byte) in [(4, 1), (5, 2), (18, 183), (18, 3), (19, 1)] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        let error = try_load(&bytes).unwrap_err();
        assert!(matches!(error, KernelError::Architecture), "{at}: {error}");
    }
    let mut old = bzimage(&[0; 64]);
    old[0x206] = 0x05;
    assert!(matches!(try_load(&old), Err(KernelError::Protocol(0x0205))));
    let mut of_32_bits = bzimage(&[0; 64]);
    of_32_bits[0x236] = 0;
    assert!(matches!(try_load(&of_32_bits), Err(KernelError::No64BitEntry)));
}

#[test]
fn truncated_kernels_are_told() {
    let whole = elf(&[1; 5000], 5000);
    for length in [5, 63, 64, 100, 0x1000, whole.len() - 1] {
        let error = try_load(&whole[..length]).unwrap_err();
        assert!(matches!(error, KernelError::Truncated), "{length}: {error}");
    }
    let whole = bzimage(&[1; 5008]);
    for length in [0x270, 1024, 1040, whole.len() - 16] {
        let error = try_load(&whole[..length]).unwrap_err();
        assert!(matches!(error, KernelError::Truncated), "{length}: {error}");
    }
}

#[test]
fn kernels_that_do_not_fit_are_told() {
    let error = try_load(&elf(b"code", 63 << 20)).unwrap_err();
    assert!(matches!(error, KernelError::DoesNotFit { needed: 65, available: 64 }), "{error}");
    let mut large = bzimage(&[0; 64]);
    large[0x260..0x264].copy_from_slice(&(60_u32 << 20).to_le_bytes());
    let error = try_load(&large).unwrap_err();
    assert!(matches!(error, KernelError::DoesNotFit { needed: 76, .. }), "{error}");
}

#[test]
fn program_headers_that_make_no_sense_are_told() {
    let good = elf(b"code", 4);
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        try_load(&bytes).unwrap_err()
    };
    // Addresses: into the boot structures, past the end of all; sizes: file's larger than memory's.
    for (at, value) in [(64 + 24, 0x7000), (64 + 24, u64::MAX), (64 + 40, 3), (64 + 40, u64::MAX)] {
        let error = with(at, value);
        assert!(matches!(error, KernelError::Headers), "{at} {value:#x}: {error}");
    }
    assert!(matches!(with(64 + 8, u64::MAX), KernelError::Truncated));
    assert!(matches!(with(32, u64::MAX), KernelError::Headers | KernelError::Truncated));
    // An entry point outside of the kernel.
    assert!(with(24, 0x10).to_string().contains("cannot be loaded"));
}

proptest::proptest! {
    #[test]
    fn a_damaged_kernel_does_not_panic(at in 0..0x1200_usize, byte: u8, bz: bool) {
        let mut bytes = if bz { bzimage(&[1; 5008]) } else { elf(&[1; 5000], 5000) };
        bytes[at] = byte;
        let _ = try_load(&bytes);
    }
}
