//! Writing a resting machine down.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::format::{self, Device, FormatError, Snapshot, VmState};
use super::host::Processor;
use super::pages::{self, PAGE, PageMap};
use super::vcpu::{self, VcpuError, VcpuState};
use crate::GuestMemory;
use crate::machine::Machine;
use crate::memory;

/// Read from the guest's memory at once, in bytes.
const CHUNK: usize = 64 * PAGE;
/// Looked up in the page map at once, in bytes.
const WINDOW: usize = 4096 * PAGE;

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
    #[error("the file that the guest's memory began as cannot be looked at")]
    Origin(#[source] io::Error),
    #[error("the map of the monitor's pages cannot be read")]
    Pages(#[source] io::Error),
    #[error("the guest's memory cannot be read")]
    Guest(#[from] vm_memory::GuestMemoryError),
}

/// Writes a machine that rests into two files, whose contents are replaced. With `pages` of this
/// process, memory that the guest never touched is not read. The files are not flushed to the disk: who
/// gave them can do that when the machine runs again.
///
/// # Errors
/// KVM does not give something, or a file cannot be written.
pub fn save(
    host: &Kvm,
    machine: &Machine,
    state: OwnedFd,
    memory: OwnedFd,
    pages: Option<&PageMap>,
) -> Result<(), SaveError> {
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
    // What is served on demand and was not asked for yet looks untouched, and is not zeros.
    let pages = pages.filter(|_| !machine.is_served_on_demand());
    save_memory(machine.memory(), &File::from(memory), pages)?;
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
fn save_memory(memory: &GuestMemory, file: &File, pages: Option<&PageMap>) -> Result<(), SaveError> {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(0).and_then(|()| file.set_len(total)).map_err(SaveError::Memory)?;
    let mut chunk = vec![0; CHUNK];
    let mut base = 0;
    for region in memory.iter() {
        for (offset, length) in runs_to_save(region, pages)? {
            let mut done = 0;
            while done < length {
                let bytes = &mut chunk[..CHUNK.min(length - done)];
                let at = offset + done as u64;
                region.read_slice(bytes, MemoryRegionAddress(at))?;
                write_pages(file, bytes, base + at).map_err(SaveError::Memory)?;
                done += bytes.len();
            }
        }
        base += region.len();
    }
    Ok(())
}

/// The offsets and lengths, in bytes, of what may not be zeros in a region.
fn runs_to_save(region: &GuestRegionMmap, pages: Option<&PageMap>) -> Result<Vec<(u64, usize)>, SaveError> {
    let Some(pages) = pages else { return Ok(vec![(0, region.size())]) };
    // What the guest has not written to is as in the file that the memory began as, if it did.
    let begun_as = match region.file_offset() {
        Some(origin) => {
            let data = pages::data(origin.file()).map_err(SaveError::Origin)?;
            let offset = |at: u64| at.saturating_sub(origin.start());
            data.into_iter().map(|range| offset(range.start)..offset(range.end)).collect()
        }
        None => Vec::new(),
    };
    let mut begun_as = begun_as.into_iter().peekable();
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for start in (0..region.size()).step_by(WINDOW) {
        let count = WINDOW.min(region.size() - start) / PAGE;
        let address = region.as_ptr() as usize + start;
        let written = pages.written(address, count).map_err(SaveError::Pages)?;
        for (index, written) in written.into_iter().enumerate() {
            let offset = (start + index * PAGE) as u64;
            let end = offset + PAGE as u64;
            while begun_as.next_if(|range| range.end <= offset).is_some() {}
            if !written && begun_as.peek().is_none_or(|range| range.start >= end) {
                continue;
            }
            match runs.last_mut() {
                Some((run, length)) if *run + *length as u64 == offset => *length += PAGE,
                _ => runs.push((offset, PAGE)),
            }
        }
    }
    Ok(runs)
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

    const END: u64 = 64 << 20;

    fn own_pages() -> PageMap {
        PageMap::new(File::open("/proc/self/pagemap").unwrap().into())
    }

    fn saved(memory: &GuestMemory, pages: Option<&PageMap>) -> File {
        let file = tempfile::tempfile().unwrap();
        save_memory(memory, &file, pages).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), END);
        assert!(metadata.blocks() * 512 <= 64 * 1024, "{} blocks", metadata.blocks());
        file
    }

    #[test]
    fn memory_is_written_sparsely_and_read_back() {
        for pages in [None, Some(own_pages())] {
            let small = memory::anonymous(64).unwrap();
            small.write_obj(0xa5_u8, GuestAddress(5 * 4096 + 17)).unwrap();
            small.write_obj(0x5a_u8, GuestAddress(END - 1)).unwrap();
            let copy = memory::private_copy(64, saved(&small, pages.as_ref()).into()).unwrap();
            assert_eq!(copy.read_obj::<u8>(GuestAddress(5 * 4096 + 17)).unwrap(), 0xa5);
            assert_eq!(copy.read_obj::<u8>(GuestAddress(END - 1)).unwrap(), 0x5a);
            assert_eq!(copy.read_obj::<u8>(GuestAddress(4096)).unwrap(), 0);
        }
    }

    #[test]
    fn a_copy_of_a_copy_has_what_was_read_written_and_neither() {
        for pages in [None, Some(own_pages())] {
            let first = memory::anonymous(64).unwrap();
            for page in [1, 2, 3, 4] {
                first.write_obj(page as u8, GuestAddress(page * 4096)).unwrap();
            }
            let second = memory::private_copy(64, saved(&first, pages.as_ref()).into()).unwrap();
            assert_eq!(second.read_obj::<u8>(GuestAddress(4096)).unwrap(), 1);
            second.write_obj(22_u8, GuestAddress(2 * 4096)).unwrap();
            second.write_obj(0_u8, GuestAddress(3 * 4096)).unwrap();
            second.write_obj(99_u8, GuestAddress(END - 4096)).unwrap();
            let third = memory::private_copy(64, saved(&second, pages.as_ref()).into()).unwrap();
            let read = |address| third.read_obj::<u8>(GuestAddress(address)).unwrap();
            assert_eq!([1, 2, 3, 4, 5].map(|page| read(page * 4096)), [1, 22, 0, 4, 0]);
            assert_eq!(read(END - 4096), 99);
        }
    }

    #[test]
    fn what_is_no_page_map_is_not_believed() {
        let wrong = PageMap::new(tempfile::tempfile().unwrap().into());
        let memory = memory::anonymous(64).unwrap();
        let refused = save_memory(&memory, &tempfile::tempfile().unwrap(), Some(&wrong));
        assert!(matches!(refused, Err(SaveError::Pages(_))));
    }
}
