//! Whether a snapshot's processor is this host's.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

/// What a snapshot's host processor is called by CPUID. Guests adapt themselves to the model (to its
/// faults, too), so they are restored on the same one only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    pub vendor: String,
    pub family: u32,
    pub model: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("the snapshot is of another processor ({theirs}), and this one is {ours}")]
    OtherProcessor { theirs: Processor, ours: Processor },
    #[error(
        "the snapshot's processor has features that this host's KVM lacks (CPUID {leaf:#x}/{subleaf}, {register}: {bits:#x})"
    )]
    Lacking { leaf: u32, subleaf: u32, register: &'static str, bits: u32 },
}

impl std::fmt::Display for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} family {} model {}", self.vendor, self.family, self.model)
    }
}

impl Processor {
    #[must_use]
    pub fn of_this_host() -> Self {
        let (names, signature) = (__cpuid(0), __cpuid(1).eax);
        let vendor = [names.ebx, names.edx, names.ecx].map(u32::to_le_bytes).concat();
        // Intel SDM volume 2A, CPUID, figure 3-6; AMD APM volume 3, E.3.2.
        let (family, model) = ((signature >> 8) & 0xf, (signature >> 4) & 0xf);
        let extended = family == 0xf;
        Self {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            family: if extended { family + ((signature >> 20) & 0xff) } else { family },
            model: if extended || family == 6 { model | ((signature >> 12) & 0xf0) } else { model },
        }
    }

    /// # Errors
    /// This host's processor is another one.
    pub fn check(&self) -> Result<(), HostError> {
        let ours = Self::of_this_host();
        if *self == ours { Ok(()) } else { Err(HostError::OtherProcessor { theirs: self.clone(), ours }) }
    }
}

/// Leaves whose registers are sets of features: EBX, ECX, EDX of each that are.
const FEATURES: [(u32, u32, [bool; 3]); 3] =
    [(0x1, 0, [false, true, true]), (0x7, 0, [true, true, true]), (0x8000_0001, 0, [false, true, true])];
/// In leaf 1, ECX: OSXSAVE is set by the guest, not by the host.
const OSXSAVE: u32 = 1 << 27;
/// In leaf 7, ECX: OSPKE likewise.
const OSPKE: u32 = 1 << 4;

/// Checks that this host can give a guest the features it has seen.
///
/// # Errors
/// It cannot.
pub fn check_features(guest: &[kvm_cpuid_entry2], supported: &CpuId) -> Result<(), HostError> {
    for (leaf, subleaf, registers) in FEATURES {
        let find = |entries: &[kvm_cpuid_entry2]| {
            let entry = entries.iter().find(|entry| entry.function == leaf && entry.index == subleaf);
            entry.map_or([0; 3], |entry| [entry.ebx, entry.ecx, entry.edx])
        };
        let (theirs, ours) = (find(guest), find(supported.as_slice()));
        let of_the_guest = match leaf {
            1 => [0, OSXSAVE, 1 << 28],
            7 => [0, OSPKE, 0],
            _ => [0; 3],
        };
        for (index, register) in ["EBX", "ECX", "EDX"].into_iter().enumerate() {
            let bits = theirs[index] & !ours[index] & !of_the_guest[index];
            if registers[index] && bits != 0 {
                return Err(HostError::Lacking { leaf, subleaf, register, bits });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_processor_is_told_from_this_one() {
        let ours = Processor::of_this_host();
        assert_eq!(ours.vendor.len(), 12);
        ours.check().unwrap();
        let other = Processor { model: ours.model + 1, ..ours };
        assert!(matches!(other.check(), Err(HostError::OtherProcessor { .. })));
    }

    #[test]
    fn features_that_are_lacking_are_named() {
        let entry = |function, ecx| kvm_cpuid_entry2 { function, ecx, ..Default::default() };
        let supported = CpuId::from_entries(&[entry(1, 0b0111)]).unwrap();
        check_features(&[entry(1, 0b0101 | OSXSAVE)], &supported).unwrap();
        let error = check_features(&[entry(1, 0b1101)], &supported).unwrap_err();
        assert!(
            matches!(error, HostError::Lacking { leaf: 1, register: "ECX", bits: 0b1000, .. }),
            "{error}"
        );
    }
}
