//! From a description and open files to a machine that is about to run.

use std::fs::File;
use std::io;

use kvm_ioctls::Kvm;
use model::microvm::MachineConfig;

use crate::acpi::{self, AcpiError};
use crate::backends::{self, BackendError};
use crate::boot::cpuid;
use crate::boot::kernel::{self, KernelError};
use crate::boot::parameters::{self, ParametersError};
use crate::boot::processor::{self, ProcessorError};
use crate::boot::source::Source;
use crate::bus::{self, Bus};
use crate::devices::generation::{self, GenerationError};
use crate::devices::serial::SerialPort;
use crate::ending::Ending;
use crate::files::{Files, MissingFile};
use crate::machine::{Machine, Parts};
use crate::memory::{self, MemoryError};
use crate::vm::{self, VmError};

/// The most vCPUs that a machine can have.
pub const MAX_VCPUS: u8 = 16;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    #[error(transparent)]
    File(#[from] MissingFile),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    #[error("KVM does not make a processor")]
    CreateVcpu(#[source] kvm_ioctls::Error),
    #[error("the host gives no more threads or descriptors")]
    Host(#[from] io::Error),
}

/// Builds a machine that rests before the first instruction of its kernel.
///
/// # Errors
/// Anything is missing, malformed or refused; nothing is left behind then.
pub fn boot(
    host: &Kvm,
    config: &MachineConfig,
    mut files: Files,
    ending: Ending,
) -> Result<Machine, BuildError> {
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(BuildError::Vcpus(config.vcpus));
    }
    let kernel_file = files.take(config.kernel)?;
    let initramfs_file = config.initramfs.map(|file| files.take(file)).transpose()?;
    let console = config.console.map(|file| files.take(file)).transpose()?;
    let backends = backends::open(&config.devices, &mut files)?;

    let memory = memory::anonymous(config.memory_mib)?;
    let vm = vm::create(host, &memory)?;
    let devices = vm::attach(&vm, &memory, backends.devices)?;
    let generation_line = vm::interrupt_line(&vm, bus::GENERATION_INTERRUPT)?;
    let serial = match console {
        Some(output) => Some(SerialPort::new(vm::interrupt_line(&vm, bus::SERIAL_INTERRUPT)?, output)),
        None => None,
    };

    let kernel = kernel::load(&memory, Source::new(File::from(kernel_file)))?;
    let initramfs = match initramfs_file {
        Some(file) => {
            let source = Source::new(File::from(file));
            Some(parameters::load_initramfs(&memory, kernel.end, source)?)
        }
        None => None,
    };
    let described =
        acpi::Machine { vcpus: config.vcpus, virtio_devices: devices.len(), has_serial: serial.is_some() };
    let acpi_rsdp = acpi::write(&memory, &described)?;
    parameters::write(&memory, &kernel, &config.command_line, initramfs, acpi_rsdp)?;
    generation::renew(&memory)?;

    let supported = cpuid::supported(host).map_err(BuildError::CreateVcpu)?;
    let mut vcpus = Vec::new();
    for index in 0..config.vcpus {
        let vcpu = vm.create_vcpu(index.into()).map_err(BuildError::CreateVcpu)?;
        let cpuid = cpuid::of_vcpu(&supported, index, config.vcpus).map_err(ProcessorError::Entries)?;
        processor::prepare(&vcpu, &cpuid)?;
        vcpus.push(vcpu);
    }
    processor::start_at(&vcpus[0], &memory, kernel.entry)?;

    let bus = Bus::new(devices, serial);
    Ok(Machine::new(
        Parts { vm, memory, bus, vcpus, balloon: backends.balloon, generation_line, pager: None },
        ending,
    )?)
}
