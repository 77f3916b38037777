//! Writing a resting machine down.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::format::{self, Device, FormatError, Snapshot, VmState};
use super::host::Processor;
use super::vcpu::{self, VcpuError, VcpuState};
use crate::GuestMemory;
use crate::machine::Machine;
use crate::memory;

const PAGE: usize = 4096;
/// Read from the guest's memory at once, in bytes.
const CHUNK: usize = 64 * PAGE;

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error("KVM does not give the machine's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error("the snapshot's memory cannot be written")]
    Memory(#[source] io::Error),
    #[error("the guest's memory cannot be read")]
    Guest(#[from] vm_memory::GuestMemoryError),
}

/// Writes a machine that rests into two files, whose contents are replaced.
///
/// # Errors
/// KVM does not give something, or a file cannot be written.
pub fn save(host: &Kvm, machine: &Machine, state: OwnedFd, memory: OwnedFd) -> Result<(), SaveError> {
    let msrs = vcpu::saved_msrs(host)?;
    let vcpus = machine.vcpus().iter().map(|vcpu| VcpuState::save(&vcpu.lock(), &msrs));
    let devices = machine.bus().virtio_devices().iter().map(|device| {
        let transport = device.lock();
        Device { registers: transport.save(), device: transport.device().save() }
    });
    let serial =
        machine.bus().serial().map(|serial| serial.lock().unwrap_or_else(PoisonError::into_inner).save());
    let snapshot = Snapshot {
        host: Processor::of_this_host(),
        memory_mib: memory::size_mib(machine.memory()),
        vcpus: vcpus.collect::<Result<_, _>>()?,
        vm: save_vm(machine.vm())?,
        devices: devices.collect(),
        serial,
    };
    save_memory(machine.memory(), &File::from(memory))?;
    // Last: a state file says that the memory file is whole.
    format::write(&File::from(state), &snapshot)?;
    Ok(())
}

fn save_vm(vm: &VmFd) -> Result<VmState, SaveError> {
    let mut interrupt_controllers = Vec::new();
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(|error| SaveError::Kvm("interrupt controllers", error))?;
        interrupt_controllers.push(chip);
    }
    let timer = vm.get_pit2().map_err(|error| SaveError::Kvm("timer", error))?;
    let mut clock = vm.get_clock().map_err(|error| SaveError::Kvm("clock", error))?;
    // The flags say how exact it is; set again, they would mean something else (KVM API, 4.30).
    clock.flags = 0;
    Ok(VmState { interrupt_controllers, timer, clock })
}

/// Writes the memory; pages of zeros become holes.
fn save_memory(memory: &GuestMemory, file: &File) -> Result<(), SaveError> {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(0).and_then(|()| file.set_len(total)).map_err(SaveError::Memory)?;
    let mut chunk = vec![0; CHUNK];
    let mut base = 0;
    for region in memory.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let length = CHUNK.min((region.len() - offset) as usize);
            let bytes = &mut chunk[..length];
            region.read_slice(bytes, MemoryRegionAddress(offset))?;
            write_pages(file, bytes, base + offset).map_err(SaveError::Memory)?;
            offset += length as u64;
        }
        base += region.len();
    }
    file.sync_all().map_err(SaveError::Memory)
}

/// Writes the runs of pages that are not zeros.
fn write_pages(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let mut at = 0;
    for run in bytes.chunks(PAGE).collect::<Vec<_>>().chunk_by(|a, b| (*a == ZEROS) == (*b == ZEROS)) {
        let length = run.iter().map(|page| page.len()).sum::<usize>();
        if run[0] != ZEROS {
            file.write_all_at(&bytes[at..at + length], offset + at as u64)?;
        }
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn memory_is_written_sparsely_and_read_back() {
        let file = tempfile::tempfile().unwrap();
        let small = memory::anonymous(64).unwrap();
        small.write_obj(0xa5_u8, GuestAddress(5 * 4096 + 17)).unwrap();
        small.write_obj(0x5a_u8, GuestAddress((64 << 20) - 1)).unwrap();
        save_memory(&small, &file).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 <= 64 * 1024, "{} blocks", metadata.blocks());
        let copy = memory::private_copy(64, file.into()).unwrap();
        assert_eq!(copy.read_obj::<u8>(GuestAddress(5 * 4096 + 17)).unwrap(), 0xa5);
        assert_eq!(copy.read_obj::<u8>(GuestAddress((64 << 20) - 1)).unwrap(), 0x5a);
        assert_eq!(copy.read_obj::<u8>(GuestAddress(4096)).unwrap(), 0);
    }
}
