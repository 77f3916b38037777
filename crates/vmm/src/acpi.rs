//! The ACPI tables: how the guest finds its processors and devices, and powers off.
//!
//! A hardware-reduced machine (ACPI 6.5, 4.1 "Hardware-Reduced ACPI"): no fixed hardware but the
//! sleep registers. Devices are described in the DSDT.

use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::boot::layout;
use crate::bus;

const OEM: [u8; 6] = *b"CORACL";
const OEM_TABLE: [u8; 8] = *b"CORACLE ";
const OEM_REVISION: u32 = 1;
/// Where KVM's local APICs and I/O APIC are.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The sleep type of state S5, "soft off": ours to choose.
const S5: u8 = 5;

#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    #[error("the ACPI tables are longer than the room for them")]
    TooLong,
    #[error("the ACPI tables do not fit in the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What the tables tell of.
pub struct Machine {
    pub vcpus: u8,
    pub virtio_devices: usize,
    pub has_serial: bool,
}

/// Writes all tables and returns the address of the root pointer.
///
/// # Errors
/// They do not fit.
pub fn write(memory: &GuestMemory, machine: &Machine) -> Result<u64, AcpiError> {
    let rsdp_address = layout::ACPI;
    let mut next = rsdp_address + 64;
    let mut place = |table: &dyn Aml| -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(64);
        if next > layout::ACPI_END {
            return Err(AcpiError::TooLong);
        }
        memory.write_slice(&bytes, GuestAddress(at))?;
        Ok(at)
    };
    let dsdt = place(&dsdt(machine))?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(machine.vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, GuestAddress(rsdp_address))?;
    Ok(rsdp_address)
}

fn fadt(dsdt: u64) -> impl Aml {
    let register = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        // There is neither a power nor a sleep button in fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.sleep_control_reg = register(bus::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(bus::SLEEP_STATUS);
    // IA-PC boot flags: no VGA (bit 2), no CMOS clock (bit 5); and neither legacy devices nor an
    // 8042 (bits 0, 1).
    fadt.iapc_boot_arch = ((1u16 << 2) | (1 << 5)).into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IO_APIC, 0));
    madt
}

fn dsdt(machine: &Machine) -> Sdt {
    let mut body = Vec::new();
    for index in 0..machine.virtio_devices {
        virtio_device(index, &mut body);
    }
    generation_id(&mut body);
    if machine.has_serial {
        serial_port(&mut body);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), body));
    let mut s5 = Vec::new();
    Name::new("\\_S5_".into(), &Package::new(vec![&S5])).to_aml_bytes(&mut s5);
    dsdt.append_slice(&s5);
    dsdt
}

/// A virtio-mmio transport (`LNRO0005`: Linux, `drivers/virtio/virtio_mmio.c`).
fn virtio_device(index: usize, into: &mut dyn AmlSink) {
    // Both fit in 32 bits: there are at most `bus::MAX_VIRTIO_DEVICES`.
    let (window, size) = (bus::virtio_window(index) as u32, bus::WINDOW_SIZE as u32);
    Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, window, size),
                    &Interrupt::new(true, true, false, false, bus::virtio_interrupt(index)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(into);
}

/// The VM generation id ("Virtual Machine Generation ID", Microsoft), and the event device that
/// tells of a new one (ACPI 6.5, 5.6.9).
fn generation_id(into: &mut dyn AmlSink) {
    let (low, high) = (layout::GENERATION_ID as u32, (layout::GENERATION_ID >> 32) as u32);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"CORA0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(into);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    bus::GENERATION_INTERRUPT,
                )]),
            ),
            &Method::new("_EVT".into(), 1, true, vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)]),
        ],
    )
    .to_aml_bytes(into);
}

fn serial_port(into: &mut dyn AmlSink) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, bus::SERIAL_INTERRUPT),
                    &IO::new(bus::SERIAL, bus::SERIAL, 1, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(into);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn read(memory: &GuestMemory, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let header = read(memory, at, 36);
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let table = read(memory, at, length as usize);
        assert_eq!(sum(&table), 0, "{:?}", String::from_utf8_lossy(&table[..4]));
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn address(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn tables_are_linked_and_their_checksums_hold() {
        let memory = memory::anonymous(32).unwrap();
        let machine = Machine { vcpus: 16, virtio_devices: bus::MAX_VIRTIO_DEVICES, has_serial: true };
        let root = write(&memory, &machine).unwrap();
        let rsdp = read(&memory, root, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&memory, address(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&memory, address(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&memory, address(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 16 * 8 + 12);
        let dsdt = table(&memory, address(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|w| *w == needle).count();
        assert_eq!(count(b"LNRO0005"), bus::MAX_VIRTIO_DEVICES);
        assert_eq!(count(b"_S5_"), 1);
        assert_eq!(count(b"COM1"), 1);
    }
}
