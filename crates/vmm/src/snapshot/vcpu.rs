//! The state of one virtual processor.
//!
//! The order in which it is put back matters; the reasons stand where they apply.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// The time at which the local APIC's timer fires: an absolute value of the time stamp counter, so
/// it is set after that, and after the APIC that it belongs to.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// How far two clocks may differ before the guest must be given another one, in millionths: what
/// the guest's own time keeping corrects.
const TSC_TOLERANCE_PPM: u64 = 250;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    run_state: kvm_mp_state,
    registers: kvm_regs,
    special_registers: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Model-specific registers: number and value.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error("KVM does not give or take a processor's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error("KVM does not take the model-specific register {0:#x}")]
    Msr(u32),
    #[error(
        "the snapshot's time stamp counter runs at {theirs} kHz, and this host can only have it run at {ours} kHz"
    )]
    Tsc { theirs: u32, ours: u32 },
    #[error("there are too many entries for one KVM call")]
    Entries(#[from] vmm_sys_util::fam::Error),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Kvm(what, error)
}

/// The model-specific registers that this host's KVM can save.
///
/// # Errors
/// KVM does not say.
pub fn saved_msrs(host: &Kvm) -> Result<Vec<u32>, VcpuError> {
    let list = host.get_msr_index_list().map_err(kvm("list of model-specific registers"))?;
    Ok(list.as_slice().to_vec())
}

impl VcpuState {
    /// Reads a resting processor.
    ///
    /// # Errors
    /// KVM does not give something.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, VcpuError> {
        // First: reading the run state delivers what is pending in the APIC.
        let run_state = vcpu.get_mp_state().map_err(kvm("run state"))?;
        Ok(Self {
            run_state,
            registers: vcpu.get_regs().map_err(kvm("registers"))?,
            special_registers: vcpu.get_sregs().map_err(kvm("special registers"))?,
            xsave: vcpu.get_xsave().map_err(kvm("extended state"))?,
            xcrs: vcpu.get_xcrs().map_err(kvm("extended control registers"))?,
            debug_registers: vcpu.get_debug_regs().map_err(kvm("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(kvm("local APIC"))?,
            msrs: read_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(kvm("events"))?,
            tsc_khz: vcpu.get_tsc_khz().map_err(kvm("time stamp counter's rate"))?,
            cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("CPUID"))?.as_slice().to_vec(),
        })
    }

    /// Puts the state into a new processor.
    ///
    /// # Errors
    /// KVM does not take something.
    #[allow(unsafe_code)]
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        // First: it decides what the others may contain.
        let cpuid = CpuId::from_entries(&self.cpuid)?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("CPUID"))?;
        self.restore_tsc_rate(vcpu)?;
        vcpu.set_mp_state(self.run_state).map_err(kvm("run state"))?;
        vcpu.set_regs(&self.registers).map_err(kvm("registers"))?;
        // Before the APIC: it holds the APIC's base and mode.
        vcpu.set_sregs(&self.special_registers).map_err(kvm("special registers"))?;
        // SAFETY: KVM reads 4096 bytes, unless the process has asked for dynamic extended features
        // (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(kvm("extended state"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(kvm("extended control registers"))?;
        vcpu.set_debug_regs(&self.debug_registers).map_err(kvm("debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(kvm("local APIC"))?;
        let (last, first): (Vec<_>, Vec<_>) =
            self.msrs.iter().partition(|(index, _)| *index == MSR_TSC_DEADLINE);
        write_msrs(vcpu, &first)?;
        write_msrs(vcpu, &last)?;
        vcpu.set_vcpu_events(&self.events).map_err(kvm("events"))
    }

    fn restore_tsc_rate(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let (theirs, ours) = (self.tsc_khz, vcpu.get_tsc_khz().map_err(kvm("time stamp counter's rate"))?);
        if u64::from(theirs.abs_diff(ours)) * 1_000_000 <= u64::from(theirs) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        vcpu.set_tsc_khz(theirs).map_err(|_| VcpuError::Tsc { theirs, ours })
    }
}

/// Registers that are listed but that this vCPU does not have are left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries)?;
        // KVM stops at the first that it cannot read.
        let read = vcpu.get_msrs(&mut msrs).map_err(kvm("model-specific registers"))?;
        values.extend(msrs.as_slice()[..read].iter().map(|entry| (entry.index, entry.data)));
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(values)
}

fn write_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), VcpuError> {
    let mut rest = values;
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&entries)?;
        // KVM stops at the first that it does not take. A zero is what it has already.
        let written = vcpu.set_msrs(&msrs).map_err(kvm("model-specific registers"))?;
        match rest.get(written) {
            Some(&(index, value)) if value != 0 => return Err(VcpuError::Msr(index)),
            _ => rest = rest.get(written + 1..).unwrap_or_default(),
        }
    }
    Ok(())
}
