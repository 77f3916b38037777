//! Where the guest's accesses to devices go: one fixed table for memory, one for I/O ports.

use std::sync::{Arc, Mutex, PoisonError};

use model::microvm::Ended;

use crate::devices::serial::SerialPort;
use crate::memory::HOLE_START;
use crate::virtio::mmio::MmioDevice;

/// The size of a virtio-mmio window, in bytes.
pub const WINDOW_SIZE: u64 = 0x1000;
/// The first interrupt (GSI) of a virtio device; the others follow.
const FIRST_INTERRUPT: u32 = 5;
/// I/O APIC pins end at 23.
pub const MAX_VIRTIO_DEVICES: usize = 19;
/// The interrupt of the first serial port, as on a PC.
pub const SERIAL_INTERRUPT: u32 = 4;
/// The interrupt by which the VM generation id's change is told.
pub const GENERATION_INTERRUPT: u32 = 3;

/// I/O ports.
pub const SERIAL: u16 = 0x3f8;
const SERIAL_LAST: u16 = SERIAL + 7;
const KEYBOARD_COMMAND: u16 = 0x64;
/// ACPI's sleep registers (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL: u16 = 0x600;
pub const SLEEP_STATUS: u16 = 0x601;

/// The i8042's command that pulses the reset line.
const RESET_COMMAND: u8 = 0xfe;
/// `SLP_EN` in the sleep control register: enter the state. There is only one, "soft off".
const SLEEP_ENABLE: u8 = 1 << 5;

/// The address of a virtio device's window.
#[must_use]
pub fn virtio_window(index: usize) -> u64 {
    HOLE_START + index as u64 * WINDOW_SIZE
}

/// The interrupt of a virtio device.
#[must_use]
pub fn virtio_interrupt(index: usize) -> u32 {
    // There are at most `MAX_VIRTIO_DEVICES`.
    FIRST_INTERRUPT + index as u32
}

/// All that the guest can reach by memory or port accesses that KVM does not handle itself.
pub struct Bus {
    virtio: Vec<Arc<MmioDevice>>,
    serial: Option<Mutex<SerialPort>>,
}

impl Bus {
    #[must_use]
    pub fn new(virtio: Vec<Arc<MmioDevice>>, serial: Option<SerialPort>) -> Self {
        Self { virtio, serial: serial.map(Mutex::new) }
    }

    #[must_use]
    pub fn virtio_devices(&self) -> &[Arc<MmioDevice>] {
        &self.virtio
    }

    #[must_use]
    pub fn serial(&self) -> Option<&Mutex<SerialPort>> {
        self.serial.as_ref()
    }

    /// The device whose window holds the address, and the offset in that window.
    fn find(&self, address: u64) -> Option<(&MmioDevice, u64)> {
        let offset = address.checked_sub(HOLE_START)?;
        let index = usize::try_from(offset / WINDOW_SIZE).ok()?;
        Some((self.virtio.get(index)?, offset % WINDOW_SIZE))
    }

    /// What is nowhere reads as ones, as on a PC's bus.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(first) = data.first_mut() else { return };
        match (port, &self.serial) {
            (SERIAL..=SERIAL_LAST, Some(serial)) => {
                let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
                *first = serial.read((port - SERIAL) as u8);
            }
            // The keyboard controller is always ready for a command; no wake-up is pending.
            (KEYBOARD_COMMAND | SLEEP_STATUS, _) => *first = 0,
            _ => {}
        }
    }

    /// Says how the machine ends if this ends it.
    #[must_use]
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Ended> {
        let &first = data.first()?;
        match (port, &self.serial) {
            (SERIAL..=SERIAL_LAST, Some(serial)) => {
                let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
                serial.write((port - SERIAL) as u8, first);
                None
            }
            (KEYBOARD_COMMAND, _) if first == RESET_COMMAND => Some(Ended::Reset),
            (SLEEP_CONTROL, _) if first & SLEEP_ENABLE != 0 => Some(Ended::PoweredOff),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_ends_its_machine_through_two_ports_only() {
        let bus = Bus::new(Vec::new(), None);
        for port in 0..=u16::MAX {
            for byte in [0, 1, 0x20, 0x34, 0xfe, 0xff] {
                let expected = match (port, byte) {
                    (0x64, 0xfe) => Some(Ended::Reset),
                    (0x600, byte) if byte & 0x20 != 0 => Some(Ended::PoweredOff),
                    _ => None,
                };
                assert_eq!(bus.write_port(port, &[byte]), expected, "{port:#x} {byte:#x}");
            }
            assert_eq!(bus.write_port(port, &[]), None);
        }
    }

    #[test]
    fn what_is_nowhere_reads_as_ones() {
        let bus = Bus::new(Vec::new(), None);
        for address in [0, HOLE_START, HOLE_START + WINDOW_SIZE * 40, u64::MAX] {
            let mut data = [0; 4];
            bus.read_memory(address, &mut data);
            assert_eq!(data, [0xff; 4]);
            bus.write_memory(address, &data);
        }
        let mut data = [0; 2];
        bus.read_port(0x3f8, &mut data);
        assert_eq!(data, [0xff; 2]);
        bus.read_port(0x64, &mut data[..1]);
        assert_eq!(data, [0, 0xff]);
    }
}
