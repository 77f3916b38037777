//! The virtual machine as KVM sees it, before it has processors.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::bus;
use crate::memory::{self, MemoryError};
use crate::virtio::mmio::{Devices, MmioDevice, NOTIFY_OFFSET, Transport};
use crate::virtio::{DeviceError, Interrupt, VirtioDevice};

/// Pages that KVM needs for itself on some processors, at the end of the hole (KVM API, 4.35 and
/// `KVM_SET_IDENTITY_MAP_ADDR`).
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("this host's KVM lacks {0}")]
    Lacking(&'static str),
    #[error("KVM cannot {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("a machine has at most {max} devices, not {0}", max = bus::MAX_VIRTIO_DEVICES)]
    TooManyDevices(usize),
    #[error("a device cannot be set up")]
    Device(#[from] DeviceError),
    #[error("an interrupt cannot be set up")]
    Interrupt(#[from] io::Error),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |error| VmError::Kvm(what, error)
}

/// Makes a virtual machine with this memory, interrupt controllers and timer.
///
/// # Errors
/// KVM cannot, or lacks something.
pub fn create(host: &Kvm, memory: &GuestMemory) -> Result<VmFd, VmError> {
    for (capability, name) in [
        (Cap::Irqchip, "interrupt controllers (KVM_CAP_IRQCHIP)"),
        (Cap::Irqfd, "interrupts by descriptor (KVM_CAP_IRQFD)"),
        (Cap::Ioeventfd, "notifications by descriptor (KVM_CAP_IOEVENTFD)"),
        (Cap::ImmediateExit, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
        (Cap::Pit2, "the timer (KVM_CAP_PIT2)"),
    ] {
        if !host.check_extension(capability) {
            return Err(VmError::Lacking(name));
        }
    }
    let vm = host.create_vm().map_err(kvm("make a virtual machine"))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(kvm("place its identity map"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(kvm("place its task state"))?;
    vm.create_irq_chip().map_err(kvm("make interrupt controllers"))?;
    // With the speaker's port, which shares a register with the timer, ignored.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(kvm("make a timer"))?;
    memory::register(&vm, memory)?;
    Ok(vm)
}

/// Puts devices on the bus: windows, notifications, interrupts.
///
/// # Errors
/// There are too many, or KVM or the host refuses.
pub fn attach(
    vm: &VmFd,
    memory: &GuestMemory,
    virtio: Vec<Box<dyn VirtioDevice>>,
) -> Result<Devices, VmError> {
    if virtio.len() > bus::MAX_VIRTIO_DEVICES {
        return Err(VmError::TooManyDevices(virtio.len()));
    }
    let mut devices = Vec::new();
    for (index, device) in virtio.into_iter().enumerate() {
        let line = interrupt_line(vm, bus::virtio_interrupt(index))?;
        let transport = Transport::new(device, memory.clone(), Interrupt::new(Arc::new(line)))?;
        let register = IoEventAddress::Mmio(bus::virtio_window(index) + NOTIFY_OFFSET);
        for (queue, notification) in (0u32..).zip(transport.notifications()) {
            vm.register_ioevent(notification, &register, queue)
                .map_err(kvm("take a device's notifications"))?;
        }
        devices.push(Arc::new(MmioDevice::new(transport)));
    }
    Ok(devices)
}

/// An eventfd that raises this interrupt (edge-triggered) when it is written to.
///
/// # Errors
/// KVM or the host refuses.
pub fn interrupt_line(vm: &VmFd, interrupt: u32) -> Result<EventFd, VmError> {
    let line = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&line, interrupt).map_err(kvm("take an interrupt"))?;
    Ok(line)
}

/// The descriptor of `/dev/kvm` that the monitor was started with.
#[must_use]
pub fn host(kvm: OwnedFd) -> Kvm {
    use std::os::fd::{FromRawFd, IntoRawFd};
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is open and becomes `Kvm`'s own.
    unsafe {
        Kvm::from_raw_fd(kvm.into_raw_fd())
    }
}
