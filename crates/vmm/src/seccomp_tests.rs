//! The monitor's own threads: filtered before they rest for the first time, and so before the guest
//! runs; and ended with the process when a device does what none may.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::bus::{self, Bus};
use crate::device_thread::DeviceThread;
use crate::ending::Ending;
use crate::gate::Wanted;
use crate::memory;
use crate::snapshot::pager::Pager;
use crate::vcpu::{self, Vcpu};
use crate::virtio::mmio::{MmioDevice, NOTIFY_OFFSET, Transport};
use crate::virtio::{DeviceError, DeviceState, DeviceType, Interrupt, VirtioDevice, Vrings};
use crate::vm;

const SIGSYS: i32 = 31;
/// The beginning of a device's configuration space in its window (4.2.2).
const CONFIG: u64 = 0x100;

/// As a device would be that a guest has taken over.
struct Taken;

impl Taken {
    fn open_a_file() {
        let _ = std::fs::File::open("/etc/passwd");
    }
}

impl VirtioDevice for Taken {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        1 << 32
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        Self::open_a_file();
    }

    fn notified(&mut self, _: usize, _: &mut Vrings) -> Result<(), DeviceError> {
        Self::open_a_file();
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Entropy
    }

    fn restore(&mut self, _: &DeviceState) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Whether this process is the one that [`ends_by_its_filter`] has started for this test.
fn is_child(test: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|name| name == test)
}

const CHILD: &str = "CORACLE_SECCOMP_TEST";

/// Runs a test again as a process of its own: how it has ended, and why.
fn alone(test: &str) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(CHILD, test)
        .output()
        .unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a test alone; its process must be ended for a forbidden system call.
fn ends_by_its_filter(test: &str) {
    let (status, text) = alone(test);
    assert_eq!(status.signal(), Some(SIGSYS), "{status}: {text}");
}

/// Filters (`proc_pid_status(5)`, `Seccomp`: 2) of this process's threads with this name.
fn modes(name: &str) -> Vec<String> {
    let mut modes = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // A thread of another test may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
            line.unwrap_or_default().to_owned()
        };
        if field("Name") == name {
            modes.push(field("Seccomp"));
        }
    }
    modes
}

fn taken_device() -> Arc<MmioDevice> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    Arc::new(MmioDevice::new(Transport::new(Box::new(Taken), memory, Interrupt::new(line)).unwrap()))
}

/// As a driver begins (3.1.1), with a queue at address 0.
fn start(device: &MmioDevice) {
    let write = |offset: u64, value: u32| device.write(offset, &value.to_le_bytes());
    for (register, value) in
        [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x38, 16), (0x90, 0x1000), (0xa0, 0x2000)]
    {
        write(register, value);
    }
    write(0x44, 1);
    write(0x70, 15);
    assert!(device.lock().activation().is_some());
}

#[test]
fn a_device_thread_is_filtered_before_it_serves() {
    let test = "seccomp::tests::a_device_thread_is_filtered_before_it_serves";
    if !is_child(test) {
        return ends_by_its_filter(test);
    }
    let device = taken_device();
    let ending = Ending::new().unwrap();
    let thread = DeviceThread::spawn(vec![device.clone()], ending.clone()).unwrap();
    thread.wait_until_resting();
    assert_eq!(modes("device"), ["2"]);
    start(&device);
    device.write(NOTIFY_OFFSET, &0_u32.to_le_bytes());
    thread.ask(Wanted::Run);
    wait_in_vain(&ending);
}

/// Waits for a thread to end this process.
fn wait_in_vain(ending: &Ending) {
    let mut ready = [PollFd::new(ending, PollFlags::IN)];
    poll(&mut ready, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap();
    panic!("still here; the machine's end: {:?}", ending.get());
}

#[test]
fn a_pager_is_filtered_before_it_serves() {
    let test = "seccomp::tests::a_pager_is_filtered_before_it_serves";
    if !is_child(test) {
        let (status, text) = alone(test);
        assert!(status.success(), "{status}: {text}");
        return;
    }
    let memory = memory::anonymous(memory::MIN_MIB).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(u64::from(memory::MIN_MIB) << 20).unwrap();
    let device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd").unwrap();
    let ending = Ending::new().unwrap();
    let _pager = Pager::start(&device.into(), &memory, file.into(), ending).unwrap();
    // It has served this.
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
    assert_eq!(modes("pager"), ["2"]);
}

/// A machine whose only code reads a device's configuration.
fn machine() -> (VmFd, GuestMemory, VcpuFd, Bus) {
    const CODE: u64 = 0x1000;
    let host = Kvm::new().unwrap();
    let memory = memory::anonymous(memory::MIN_MIB).unwrap();
    let vm = vm::create(&host, &memory).unwrap();
    let devices = vm::attach(&vm, &memory, vec![Box::new(Taken)]).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    // mov al, [config]; hlt
    let mut code = vec![0xa0];
    code.extend((bus::virtio_window(0) as u32 + CONFIG as u32).to_le_bytes());
    code.push(0xf4);
    memory.write_slice(&code, GuestAddress(CODE)).unwrap();
    // Protected mode without paging, flat segments: the window is above what real mode reaches.
    let mut special = vcpu.get_sregs().unwrap();
    special.cr0 |= 1;
    for segment in [&mut special.cs, &mut special.ds, &mut special.es, &mut special.ss] {
        (segment.base, segment.limit, segment.g, segment.db) = (0, u32::MAX, 1, 1);
        (segment.selector, segment.type_) = (16, 3);
    }
    (special.cs.selector, special.cs.type_) = (8, 11);
    vcpu.set_sregs(&special).unwrap();
    let mut registers = vcpu.get_regs().unwrap();
    (registers.rip, registers.rflags) = (CODE, 2);
    vcpu.set_regs(&registers).unwrap();
    (vm, memory, vcpu, Bus::new(devices, None))
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_processor_thread_is_filtered_before_the_guest_runs() {
    let test = "seccomp::tests::a_processor_thread_is_filtered_before_the_guest_runs";
    if !is_child(test) {
        return ends_by_its_filter(test);
    }
    vcpu::prepare_process().unwrap();
    let (_vm, _memory, vcpu, bus) = machine();
    let ending = Ending::new().unwrap();
    let vcpu = Vcpu::spawn(vcpu, Arc::new(bus), ending.clone()).unwrap();
    vcpu.wait_until_resting();
    assert_eq!(modes("vcpu"), ["2"]);
    vcpu.ask(Wanted::Run);
    wait_in_vain(&ending);
}
