//! A template's device, restored in front of the tap of a task.

use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::wire::{in_network_namespace, ready_tap};
use crate::GuestMemory;
use crate::virtio::Interrupt;
use crate::virtio::mmio::{self, MmioDevice, Transport};
use crate::virtio::net::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Registers and bits (4.2.2, 2.1).
const STATUS: u64 = 0x70;
const ALL_OK: u32 = 15;
const CONFIGURATION_CHANGED: u32 = 2;

fn device(tap: Option<OwnedFd>, mtu: Option<u16>) -> MmioDevice {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let net = Net::new(tap, MAC, mtu, None, None).unwrap();
    MmioDevice::new(Transport::new(Box::new(net), memory, Interrupt::new(line)).unwrap())
}

fn read(device: &MmioDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Status and MTU of the configuration space (5.1.4).
fn link_and_mtu(device: &MmioDevice) -> (u16, u16) {
    let mut data = [0; 6];
    device.read(0x106, &mut data);
    (u16::from_le_bytes([data[0], data[1]]), u16::from_le_bytes([data[4], data[5]]))
}

/// What a snapshot keeps of a device whose driver speaks all features that it was offered.
fn template(mtu: Option<u16>) -> (mmio::State, DeviceState) {
    let device = device(None, mtu);
    let write = |offset: u64, value: u32| device.write(offset, &value.to_le_bytes());
    write(STATUS, 1);
    write(STATUS, 3);
    for half in 0..2 {
        write(0x14, half);
        write(0x24, half);
        write(0x20, read(&device, 0x10));
    }
    write(STATUS, 11);
    for (queue, base) in [(0, 0x1000), (1, 0x5000)] {
        for (register, value) in [
            (0x30, queue),
            (0x38, 256),
            (0x80, base),
            (0x90, base + 0x1000),
            (0xa0, base + 0x2000),
            (0x44, 1),
        ] {
            write(register, value);
        }
    }
    write(STATUS, ALL_OK);
    let transport = device.lock();
    assert!(transport.activation().is_some());
    (transport.save(), transport.device().save())
}

#[test]
fn a_template_takes_any_task_s_mtu() {
    in_network_namespace(|| {
        for (theirs, ours, then) in [
            // The driver does not know of MTUs: the supervisor sets the interface's.
            (None, Some(1400), 1400),
            (None, None, 0),
            // The driver reads one: it goes on doing so.
            (Some(1500), None, 1500),
            (Some(1500), Some(9000), 9000),
        ] {
            let (registers, state) = template(theirs);
            let restored = device(Some(ready_tap(1400)), ours);
            restored.lock().restore(&registers, &state).unwrap();
            assert_eq!(read(&restored, STATUS), ALL_OK, "{theirs:?} {ours:?}");
            assert_eq!(link_and_mtu(&restored), (1, then), "{theirs:?} {ours:?}");
            assert_eq!(read(&restored, 0x60), CONFIGURATION_CHANGED, "the cable is plugged in");
        }
    });
}

#[test]
fn another_device_s_state_is_refused() {
    let (registers, _) = template(None);
    let error = device(None, None).lock().restore(&registers, &DeviceState::Entropy).unwrap_err();
    let text = crate::log::chain(&error);
    assert!(text.contains("not a network device's"), "{text}");
}
