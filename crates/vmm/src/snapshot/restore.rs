//! Going on from a snapshot.

use std::fs::File;
use std::io;

use kvm_ioctls::{Kvm, VmFd};
use model::microvm::{Ended, RestoreConfig};

use super::format::{self, FormatError, VmState};
use super::host::{self, HostError};
use super::pager::Pager;
use super::vcpu::VcpuError;
use crate::backends::{self, BackendError};
use crate::boot::cpuid;
use crate::bus::{self, Bus};
use crate::devices::generation::{self, GenerationError};
use crate::devices::serial::SerialPort;
use crate::ending::Ending;
use crate::files::{Files, MissingFile};
use crate::machine::{Machine, Parts};
use crate::memory::{self, MemoryError};
use crate::virtio::mmio;
use crate::vm::{self, VmError};

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    File(#[from] MissingFile),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("KVM does not take the machine's {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error("the snapshot's machine has {theirs} devices, and {ours} are given")]
    Devices { ours: usize, theirs: usize },
    #[error("device {0} is not as in the snapshot")]
    Device(usize, #[source] mmio::RestoreError),
    #[error("a console is given, but the snapshot's machine has no serial port")]
    NoSerialPort,
    #[error("the memory cannot be served on demand")]
    Pager(#[source] io::Error),
    #[error("{0}")]
    Ended(String),
    #[error("the snapshot has no processor")]
    NoVcpus,
    #[error("the host gives no more threads or descriptors")]
    Resources(#[from] io::Error),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RestoreError {
    move |error| RestoreError::Kvm(what, error)
}

/// Makes the snapshot's machine, at rest.
///
/// # Errors
/// The snapshot is damaged or another host's, or what is given does not fit it.
pub fn restore(
    host: &Kvm,
    config: &RestoreConfig,
    mut files: Files,
    ending: Ending,
) -> Result<Machine, RestoreError> {
    let snapshot = format::read(&File::from(files.take(config.state)?))?;
    snapshot.host.check()?;
    let first = snapshot.vcpus.first().ok_or(RestoreError::NoVcpus)?;
    host::check_features(&first.cpuid, &cpuid::supported(host).map_err(kvm("CPUID"))?)?;
    let memory_file = files.take(config.memory)?;
    let userfaultfd = config.userfaultfd.map(|file| files.take(file)).transpose()?;
    let console = config.console.map(|file| files.take(file)).transpose()?;
    if console.is_some() && snapshot.serial.is_none() {
        return Err(RestoreError::NoSerialPort);
    }
    let backends = backends::open(&config.devices, &mut files)?;
    let (ours, theirs) = (backends.devices.len(), snapshot.devices.len());
    if ours != theirs {
        return Err(RestoreError::Devices { ours, theirs });
    }

    let (memory, pager) = match userfaultfd {
        Some(device) => {
            let memory = memory::anonymous(snapshot.memory_mib)?;
            let file = File::from(memory_file);
            memory::check_size(snapshot.memory_mib, &file)?;
            let pager = Pager::start(&device, &memory, file.into(), ending.clone());
            (memory, Some(pager.map_err(RestoreError::Pager)?))
        }
        None => (memory::private_copy(snapshot.memory_mib, memory_file)?, None),
    };
    let vm = vm::create(host, &memory)?;
    let devices = vm::attach(&vm, &memory, backends.devices)?;
    let generation_line = vm::interrupt_line(&vm, bus::GENERATION_INTERRUPT)?;
    let mut vcpus = Vec::new();
    for (index, state) in (0..).zip(&snapshot.vcpus) {
        let vcpu = vm.create_vcpu(index).map_err(kvm("processors"))?;
        state.restore(&vcpu)?;
        vcpus.push(vcpu);
    }
    restore_vm(&vm, &snapshot.vm)?;
    // From here on interrupts can be raised: their controllers are as they were.
    let serial = match &snapshot.serial {
        Some(state) => {
            let line = vm::interrupt_line(&vm, bus::SERIAL_INTERRUPT)?;
            Some(SerialPort::restore(line, console, state)?)
        }
        None => None,
    };
    for (index, (device, state)) in devices.iter().zip(&snapshot.devices).enumerate() {
        device
            .lock()
            .restore(&state.registers, &state.device)
            .map_err(|error| RestoreError::Device(index, error))?;
    }
    if config.new_identity {
        generation::renew(&memory)?;
        generation::notify(&generation_line);
    }
    // Memory that could not be had is zeros: nothing may run with it.
    if let Some(Ended::Failed { message }) = ending.get() {
        return Err(RestoreError::Ended(message));
    }
    let bus = Bus::new(devices, serial);
    let parts = Parts { vm, memory, bus, vcpus, balloon: backends.balloon, generation_line, pager };
    Ok(Machine::new(parts, ending)?)
}

fn restore_vm(vm: &VmFd, state: &VmState) -> Result<(), RestoreError> {
    for chip in &state.interrupt_controllers {
        vm.set_irqchip(chip).map_err(kvm("interrupt controllers"))?;
    }
    vm.set_pit2(&state.timer).map_err(kvm("timer"))?;
    vm.set_clock(&state.clock).map_err(kvm("clock"))
}
