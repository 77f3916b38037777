//! What the guest sees of its processors (CPUID): what KVM can do here, with the topology made
//! that of this machine: one package of as many cores as there are vCPUs, one thread each.
//!
//! Sources: Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_SVM: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// What KVM offers, before it is made one vCPU's.
///
/// # Errors
/// KVM does not say.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            FEATURES => {
                // KVM does not list it, but has it with an in-kernel APIC (KVM API, 4.46).
                set(&mut entry.ecx, 24, deadline_timer);
                // MONITOR/MWAIT would only trap.
                set(&mut entry.ecx, 3, false);
                // VMX: guests have no guests of their own.
                set(&mut entry.ecx, 5, false);
                // A hypervisor is present.
                set(&mut entry.ecx, 31, true);
            }
            // No performance counters: they tell of the neighbours, and bind snapshots to a model. No
            // SVM: as VMX.
            PERFORMANCE | AMD_SVM => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // SVM; PerfCtrExtCore and PerfCtrExtNB.
            AMD_FEATURES => {
                set(&mut entry.ecx, 2, false);
                set(&mut entry.ecx, 23, false);
                set(&mut entry.ecx, 24, false);
            }
            _ => {}
        }
    }
    Ok(cpuid)
}

/// The CPUID of the vCPU with this index (its APIC id, too) among `count`.
///
/// # Errors
/// There are more entries than KVM takes.
pub fn of_vcpu(supported: &CpuId, index: u8, count: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let (id, cores) = (u32::from(index), u32::from(count));
    let id_bits = cores.next_power_of_two().trailing_zeros();
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            FEATURES => {
                // Brand index; cache line of 64 bytes for CLFLUSH; logical processors; APIC id.
                entry.ebx = (entry.ebx & 0xff) | (8 << 8) | (cores << 16) | (id << 24);
                // Hyper-threading: "more than one logical processor".
                set(&mut entry.edx, 28, cores > 1);
            }
            CACHES | AMD_CACHES if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { cores } else { 1 };
                entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14);
                if entry.function == CACHES {
                    entry.eax |= (cores - 1) << 26;
                }
            }
            AMD_SIZES => entry.ecx = (cores - 1) | (id_bits << 12),
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    if highest >= TOPOLOGY {
        entries.extend(topology(TOPOLOGY, id, cores, id_bits));
    }
    if highest >= TOPOLOGY_V2 {
        entries.extend(topology(TOPOLOGY_V2, id, cores, id_bits));
    }
    CpuId::from_entries(&entries)
}

/// Leaf 0xb or 0x1f: threads (one in a core), cores, and the end of the list.
fn topology(function: u32, id: u32, cores: u32, id_bits: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift, count, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | (kind << 8),
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, id_bits, cores, 2), level(2, 0, 0, 0)]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = (*register & !(1 << bit)) | (u32::from(on) << bit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    #[test]
    fn each_vcpu_is_a_core_of_one_package() {
        let supported = CpuId::from_entries(&[
            entry(0, 0, 0x1f),
            entry(FEATURES, 0, 0),
            entry(CACHES, 0, 1 | (1 << 5)),
            entry(CACHES, 3, 3 | (3 << 5)),
            entry(TOPOLOGY, 0, 0xdead),
            entry(AMD_SIZES, 0, 0),
        ])
        .unwrap();
        let cpuid = of_vcpu(&supported, 2, 3).unwrap();
        let find = |function, index| {
            *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
        };
        assert_eq!(find(FEATURES, 0).ebx >> 24, 2);
        assert_eq!((find(FEATURES, 0).ebx >> 16) & 0xff, 3);
        assert_eq!(find(FEATURES, 0).edx >> 28 & 1, 1);
        assert_eq!((find(CACHES, 0).eax >> 14) & 0xfff, 0);
        assert_eq!((find(CACHES, 3).eax >> 14) & 0xfff, 2);
        assert_eq!(find(AMD_SIZES, 0).ecx, 2 | (2 << 12));
        for leaf in [TOPOLOGY, TOPOLOGY_V2] {
            assert_eq!((find(leaf, 0).eax, find(leaf, 0).ebx, find(leaf, 0).edx), (0, 1, 2));
            assert_eq!((find(leaf, 1).eax, find(leaf, 1).ebx, find(leaf, 1).edx), (2, 3, 2));
            assert_eq!(find(leaf, 2).ecx, 2);
        }
    }
}
