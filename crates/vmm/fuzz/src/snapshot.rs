//! Files that are snapshots, almost.

use std::sync::Arc;

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use vm_memory::GuestAddress;
use vmm::GuestMemory;
use vmm::devices::serial::SerialPort;
use vmm::snapshot::format::{self, Device, Snapshot, VmState};
use vmm::snapshot::host::Processor;
use vmm::virtio::Interrupt;
use vmm::virtio::mmio::Transport;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::input::Input;
use super::subjects;

/// Of the header (`snapshot::format`): what precedes the document.
const HEADER: usize = 24;

pub fn run(mut input: Input<'_>) {
    let bytes = match input.byte() % 3 {
        0 => input.rest().to_vec(),
        1 => with_header(input.rest()),
        _ => {
            let mut document = document();
            while !input.is_empty() {
                edit(&mut document, &mut input);
            }
            with_header(&document)
        }
    };
    let file = subjects::file(&bytes, bytes.len() as u64);
    if let Ok(snapshot) = format::read(&file) {
        restore(&snapshot);
    }
}

/// A header that fits the document, so that it is looked at.
fn with_header(document: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + document.len());
    bytes.extend(b"CORASNAP");
    bytes.extend(format::VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(document).to_le_bytes());
    bytes.extend((document.len() as u64).to_le_bytes());
    bytes.extend(document);
    bytes
}

/// Replaces some bytes by others.
fn edit(document: &mut Vec<u8>, input: &mut Input<'_>) {
    let at = usize::from(input.u16()) % (document.len() + 1);
    let (old, new) = (usize::from(input.byte() % 16), usize::from(input.byte() % 16));
    let end = (at + old).min(document.len());
    document.splice(at..end, input.bytes(new).iter().copied());
}

/// The document of a machine without processors, with every kind of device.
fn document() -> Vec<u8> {
    let memory = memory();
    let kinds = [
        r#"{"device":"block","capacity":160,"read_only":false}"#,
        r#"{"device":"net","mtu":1500}"#,
        r#"{"device":"vsock","next_port":2000}"#,
        r#"{"device":"entropy"}"#,
        r#"{"device":"balloon","target":256,"actual":0}"#,
    ];
    let devices = kinds.map(|text| {
        let device = serde_json::from_str(text).expect("a device's state");
        let transport = transport(&device, &memory);
        Device { registers: transport.save(), device }
    });
    let snapshot = Snapshot {
        host: Processor { vendor: "a processor's".into(), family: 25, model: 1 },
        memory_mib: 256,
        vcpus: Vec::new(),
        vm: VmState {
            interrupt_controllers: vec![kvm_irqchip::default(); 3],
            timer: kvm_pit_state2::default(),
            clock: kvm_clock_data::default(),
        },
        devices: devices.into(),
        serial: None,
    };
    // The devices first: what is far behind, edits do not reach.
    let mut document = serde_json::to_value(&snapshot).expect("a snapshot can be written");
    let devices = document["devices"].take();
    document.as_object_mut().expect("it is an object").remove("devices");
    let (mut text, rest) = (format!(r#"{{"devices":{devices},"#), document.to_string());
    text.push_str(&rest[1..]);
    text.into_bytes()
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB can be mapped")
}

fn line() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("few descriptors are open")
}

fn transport(state: &vmm::virtio::DeviceState, memory: &GuestMemory) -> Transport {
    let interrupt = Interrupt::new(Arc::new(line()));
    Transport::new(subjects::any(state), memory.clone(), interrupt).expect("the queues have possible sizes")
}

/// What is done without KVM: devices, with the guest's first notifications.
fn restore(snapshot: &Snapshot) {
    let memory = memory();
    for device in &snapshot.devices {
        let mut transport = transport(&device.device, &memory);
        if transport.restore(&device.registers, &device.device).is_ok() {
            for queue in 0..transport.notifications().len() {
                transport.notified(queue);
            }
        }
    }
    if let Some(state) = &snapshot.serial {
        let _ = SerialPort::restore(line(), None, state);
    }
}
