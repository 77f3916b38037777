//! A built machine: its threads, and what can be done with it.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use model::microvm::Description;
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::bus::Bus;
use crate::device_thread::DeviceThread;
use crate::ending::Ending;
use crate::gate::Wanted;
use crate::memory;
use crate::snapshot::pager::Pager;
use crate::vcpu::Vcpu;
use crate::virtio::balloon;

/// What a machine is made of.
pub struct Parts {
    pub vm: VmFd,
    pub memory: GuestMemory,
    pub bus: Bus,
    pub vcpus: Vec<VcpuFd>,
    pub balloon: balloon::Control,
    pub generation_line: EventFd,
    /// If the memory is served on demand.
    pub pager: Option<Pager>,
}

/// A machine that runs or rests. Dropping it stops it.
pub struct Machine {
    // The threads are dropped before what they work on.
    vcpus: Vec<Vcpu>,
    device_threads: Vec<DeviceThread>,
    bus: Arc<Bus>,
    pager: Option<Pager>,
    balloon: balloon::Control,
    generation_line: EventFd,
    vm: VmFd,
    memory: GuestMemory,
    paused: bool,
}

impl Machine {
    /// A machine at rest, with all its threads.
    ///
    /// # Errors
    /// The host gives no more threads or descriptors.
    pub fn new(parts: Parts, ending: Ending) -> io::Result<Self> {
        let Parts { vm, memory, bus, vcpus, balloon, generation_line, pager } = parts;
        let bus = Arc::new(bus);
        let (blocking, others): (Vec<_>, Vec<_>) =
            bus.virtio_devices().iter().cloned().partition(|device| device.lock().device().is_blocking());
        let mut device_threads = Vec::new();
        for device in blocking {
            device_threads.push(DeviceThread::spawn(vec![device], ending.clone())?);
        }
        if !others.is_empty() {
            device_threads.push(DeviceThread::spawn(others, ending.clone())?);
        }
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| Vcpu::spawn(vcpu, bus.clone(), ending.clone()))
            .collect::<Result<_, _>>()?;
        let machine =
            Self { vcpus, device_threads, bus, pager, balloon, generation_line, vm, memory, paused: true };
        machine.wait_until_resting();
        Ok(machine)
    }

    /// Sets all threads going.
    pub fn resume(&mut self) {
        if self.paused {
            self.tell_clock_stopped();
            self.device_threads.iter().for_each(|thread| thread.ask(Wanted::Run));
            self.vcpus.iter().for_each(|vcpu| vcpu.ask(Wanted::Run));
            self.paused = false;
        }
    }

    /// Makes all threads rest and waits until they do. The processors come first, so that devices
    /// finish what they were asked for.
    pub fn pause(&mut self) {
        if !self.paused {
            self.vcpus.iter().for_each(|vcpu| vcpu.ask(Wanted::Rest));
            self.vcpus.iter().for_each(Vcpu::wait_until_resting);
            self.device_threads.iter().for_each(|thread| thread.ask(Wanted::Rest));
            self.wait_until_resting();
            self.paused = true;
        }
    }

    /// Tells the guest that it has not run for a while, so that it does not take that for a hang
    /// (KVM API, `KVM_KVMCLOCK_CTRL`). A guest that does not use KVM's clock cannot be told.
    fn tell_clock_stopped(&self) {
        for vcpu in &self.vcpus {
            let _ = vcpu.lock().kvmclock_ctrl();
        }
    }

    fn wait_until_resting(&self) {
        self.vcpus.iter().for_each(Vcpu::wait_until_resting);
        self.device_threads.iter().for_each(DeviceThread::wait_until_resting);
    }

    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    #[must_use]
    pub fn describe(&self, started_in_us: u64) -> Description {
        Description {
            // There are at most `builder::MAX_VCPUS`.
            vcpus: self.vcpus.len() as u8,
            memory_mib: memory::size_mib(&self.memory),
            paused: self.paused,
            ballooned_mib: self.balloon.actual(),
            started_in_us,
        }
    }

    /// Asks the guest for this much of its memory, in MiB.
    pub fn set_balloon(&self, target_mib: u32) {
        self.balloon.set_target(target_mib);
    }

    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether pages that were never touched are still in a file, and not in the memory.
    #[must_use]
    pub fn is_served_on_demand(&self) -> bool {
        self.pager.is_some()
    }

    #[must_use]
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    #[must_use]
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// The interrupt by which the guest is told of a new generation id.
    #[must_use]
    pub fn generation_line(&self) -> &EventFd {
        &self.generation_line
    }
}
