//! The state in which a vCPU begins: the boot processor in 64-bit mode at the kernel's entry point,
//! the others waiting for it to start them.
//!
//! Sources: the boot protocol ("64-bit boot protocol"); Intel SDM volume 3A, chapters 2 to 5 and 11.

use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::GuestMemory;

/// Segment selectors that the boot protocol asks for.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;

#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    #[error("KVM does not set up a processor's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error("a processor's tables do not fit in the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("there are too many entries for one KVM call")]
    Entries(#[from] vmm_sys_util::fam::Error),
}

/// What each vCPU needs.
///
/// # Errors
/// KVM refuses it.
pub fn prepare(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), ProcessorError> {
    let kvm = |what| move |error| ProcessorError::Kvm(what, error);
    vcpu.set_cpuid2(cpuid).map_err(kvm("CPUID"))?;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    // KVM may lack one of them on some hosts; the guest does without then.
    for msr in
        [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)]
    {
        vcpu.set_msrs(&Msrs::from_entries(&[msr])?).map_err(kvm("model-specific registers"))?;
    }
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(kvm("floating-point unit"))?;
    let mut lapic = vcpu.get_lapic().map_err(kvm("local APIC"))?;
    for (register, mode) in [(APIC_LVT_LINT0, DELIVER_EXTINT), (APIC_LVT_LINT1, DELIVER_NMI)] {
        let bytes = &mut lapic.regs[register..register + 4];
        let old = bytes.iter().rev().fold(0u32, |all, &byte| (all << 8) | u32::from(byte as u8));
        for (byte, new) in bytes.iter_mut().zip(((old & !0x700) | mode).to_le_bytes()) {
            *byte = new as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(kvm("local APIC"))
}

/// Sends the boot processor to the kernel's entry point.
///
/// # Errors
/// As [`prepare`].
pub fn start_at(vcpu: &VcpuFd, memory: &GuestMemory, entry: GuestAddress) -> Result<(), ProcessorError> {
    let kvm = |what| move |error| ProcessorError::Kvm(what, error);
    write_page_tables(memory)?;
    let segments = [
        (0, 0),
        (0, 0),
        // Type: execute/read; L: 64-bit.
        (BOOT_CS, 0x00af_9b00_0000_ffff),
        // Type: read/write.
        (BOOT_DS, 0x00cf_9300_0000_ffff),
        // Type: busy 32-bit TSS.
        (BOOT_TSS, 0x008f_8b00_0000_ffff),
    ];
    for (index, (_, descriptor)) in (0..).zip(segments) {
        memory.write_obj::<u64>(descriptor, GuestAddress(layout::GDT + index * 8))?;
    }
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: BOOT_DS, type_: 3, db: 1, ..flat };
    let mut sregs = vcpu.get_sregs().map_err(kvm("special registers"))?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (segments.len() * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = kvm_segment { selector: BOOT_CS, type_: 11, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: BOOT_TSS, type_: 11, s: 0, g: 0, limit: 0xffff, ..flat };
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(kvm("special registers"))?;
    let regs = kvm_regs {
        rip: entry.0,
        rsi: layout::BOOT_PARAMS,
        rsp: layout::STACK_TOP,
        rbp: layout::STACK_TOP,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("registers"))
}

/// Maps the first 4 GiB onto themselves.
fn write_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(layout::PDPT | PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    for gib in 0..4 {
        let directory = layout::PAGE_DIRECTORIES + gib * 4096;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(layout::PDPT + gib * 8))?;
        for page in 0..512 {
            let target = (gib * 512 + page) * LARGE_PAGE_SIZE;
            memory.write_obj(target | PRESENT_WRITABLE | LARGE_PAGE, GuestAddress(directory + page * 8))?;
        }
    }
    Ok(())
}
