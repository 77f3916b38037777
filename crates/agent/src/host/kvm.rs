//! Whether this host's KVM can run a Linux guest: found out by running guest code, not by the
//! presence of `/dev/kvm`.
//!
//! Some hypervisors offer `/dev/kvm` to their own guests without the processor's support (PVM, for
//! one): they emulate what a guest kernel does, and their emulator does not know floating-point
//! instructions, which Linux uses early. So the probe's guest is a 64-bit kernel of some 20
//! instructions, with paging, that calculates with x87 and SSE.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};

use guest_memory::GuestMemory;

/// A guest this small ends within a millisecond; emulated KVM (nested, in tests) within some.
const DEADLINE: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmState {
    /// There is no `/dev/kvm`.
    Absent,
    /// It is there but cannot be opened, or is not KVM; why.
    Inaccessible(String),
    /// It cannot run the guest; why.
    Unusable(String),
    /// The guest ran and calculated rightly.
    RunsGuestCode,
}

/// Runs the guest. Blocks for a millisecond, 2 s at most.
pub fn probe() -> KvmState {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) if error.errno() == rustix::io::Errno::NOENT.raw_os_error() => return KvmState::Absent,
        Err(error) => return KvmState::Inaccessible(io::Error::from(error).to_string()),
    };
    // The only version there ever was since Linux 2.6.22; the documentation says to refuse others.
    if kvm.get_api_version() != 12 {
        return KvmState::Inaccessible(format!("API version {} instead of 12", kvm.get_api_version()));
    }
    let (sender, receiver) = mpsc::channel();
    // On a thread of its own, which is given up if the guest never ends: nothing but a signal
    // stops a virtual processor, and one that loops in these instructions is a broken hypervisor.
    let started = std::thread::Builder::new().name("kvm-probe".into()).spawn(move || {
        let _ = sender.send(run(&kvm));
    });
    if let Err(error) = started {
        return KvmState::Inaccessible(error.to_string());
    }
    match receiver.recv_timeout(DEADLINE) {
        Ok(Ok(())) => KvmState::RunsGuestCode,
        Ok(Err(reason)) => KvmState::Unusable(reason),
        Err(_) => KvmState::Unusable("guest code did not end".into()),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_: &Kvm) -> Result<(), String> {
    Err("running a guest is not implemented for this architecture".into())
}

/// The guest leaves its result, 4, on this port.
#[cfg(target_arch = "x86_64")]
const RESULT_PORT: u16 = 0x3f8;

#[cfg(target_arch = "x86_64")]
fn run(kvm: &Kvm) -> Result<(), String> {
    if !kvm.check_extension(Cap::UserMemory) {
        return Err("the extension KVM_CAP_USER_MEMORY is missing".into());
    }
    let vm = kvm.create_vm().map_err(failed("create a virtual machine"))?;
    let mut memory =
        GuestMemory::new(0x10000).map_err(|error| format!("cannot get guest memory: {error}"))?;
    // Identity-mapped first 2 MiB: PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000 with one large page
    // (present, writable; AMD64 Architecture Programmer's Manual 2, 5.3).
    memory.write(0x1000, &(0x2000u64 | 3).to_le_bytes());
    memory.write(0x2000, &(0x3000u64 | 3).to_le_bytes());
    memory.write(0x3000, &0x83u64.to_le_bytes());
    memory.write(0x8000, &GUEST);
    memory.give_to(&vm).map_err(failed("give the machine memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a virtual processor"))?;
    set_up_long_mode(kvm, &vcpu).map_err(failed("set the processor's registers"))?;
    await_result(&mut vcpu)
}

#[cfg(target_arch = "x86_64")]
fn set_up_long_mode(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    vcpu.set_cpuid2(&cpuid)?;
    let code = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 0b1011,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 16, type_: 0b0011, db: 1, l: 0, ..code };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = 0x1000;
    // PAE, OSFXSR, OSXMMEXCPT.
    sregs.cr4 = 0x620;
    // PE, MP, ET, NE, WP, PG.
    sregs.cr0 = 0x8001_0033;
    // LME, LMA.
    sregs.efer = 0x500;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = 0x8000;
    regs.rsp = 0x7000;
    // The bit that is always set.
    regs.rflags = 2;
    vcpu.set_regs(&regs)
}

#[cfg(target_arch = "x86_64")]
fn await_result(vcpu: &mut VcpuFd) -> Result<(), String> {
    let mut result = None;
    // Two exits are expected; a few more (a signal) do no harm.
    for _ in 0..16 {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(RESULT_PORT, [value])) => result = Some(*value),
            Ok(VcpuExit::Hlt) => {
                return match result {
                    Some(4) => Ok(()),
                    other => Err(format!("guest code calculated {other:?} instead of 4")),
                };
            }
            Ok(VcpuExit::InternalError) => {
                let at = vcpu.get_regs().map(|regs| regs.rip.saturating_sub(0x8000));
                return Err(format!(
                    "KVM internal error: it cannot run the guest kernel's instruction {}",
                    at.map_or_else(|_| "(unknown)".into(), describe)
                ));
            }
            Ok(exit) => return Err(format!("the guest stopped with {exit:?}")),
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
            Err(error) => return Err(failed("run guest code")(error)),
        }
    }
    Err("the guest does not come to its end".into())
}

#[cfg(target_arch = "x86_64")]
fn failed(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> String {
    move |error| format!("cannot {action}: {}", io::Error::from(error))
}

/// 1.0 + 1.0 on the x87, the same with SSE2, the sum of both to the port, and halt.
#[cfg(target_arch = "x86_64")]
const GUEST: [u8; 57] = [
    0xdb, 0xe3, // 0: fninit
    0xd9, 0xe8, // 2: fld1
    0xd9, 0xe8, // 4: fld1
    0xde, 0xc1, // 6: faddp
    0xdb, 0x1c, 0x25, 0x00, 0x90, 0x00, 0x00, // 8: fistp dword [0x9000]
    0xb8, 0x01, 0x00, 0x00, 0x00, // 15: mov eax, 1
    0xf2, 0x0f, 0x2a, 0xc0, // 20: cvtsi2sd xmm0, eax
    0xf2, 0x0f, 0x58, 0xc0, // 24: addsd xmm0, xmm0
    0xf2, 0x0f, 0x2c, 0xd8, // 28: cvttsd2si ebx, xmm0
    0x0f, 0xae, 0x1c, 0x25, 0x10, 0x90, 0x00, 0x00, // 32: stmxcsr [0x9010]
    0x8b, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, // 40: mov eax, [0x9000]
    0x01, 0xd8, // 47: add eax, ebx
    0x66, 0xba, 0xf8, 0x03, // 49: mov dx, 0x3f8
    0xee, // 53: out dx, al
    0xf4, // 54: hlt
    0xeb, 0xfd, // 55: jmp to hlt
];

#[cfg(target_arch = "x86_64")]
fn describe(offset: u64) -> String {
    match offset {
        0..15 | 20..40 => format!("at {offset} (floating point)"),
        _ => format!("at {offset}"),
    }
}

/// Memory that a guest may use.
#[allow(unsafe_code)]
mod guest_memory {
    use std::ffi::c_void;
    use std::io;
    use std::ptr::{self, NonNull};

    use kvm_bindings::kvm_userspace_memory_region;
    use kvm_ioctls::VmFd;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    pub struct GuestMemory {
        address: NonNull<u8>,
        size: usize,
    }

    impl GuestMemory {
        /// Zeroed.
        pub fn new(size: usize) -> io::Result<Self> {
            // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
            let address = unsafe {
                mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
            };
            let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
            Ok(Self { address, size })
        }

        /// Copies `bytes` to the guest-physical address `at`; cut off at the end of memory.
        pub fn write(&mut self, at: usize, bytes: &[u8]) {
            let length = bytes.len().min(self.size.saturating_sub(at));
            // SAFETY: `at + length` is within the mapping, which nobody else uses before the
            // machine runs; a new mapping cannot overlap `bytes`.
            unsafe {
                ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.as_ptr().add(at.min(self.size)), length)
            }
        }

        /// Makes it the machine's memory from guest-physical address 0 on. It must outlive the
        /// machine's last run, which the borrow of the caller's frame sees to.
        pub fn give_to(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
            let region = kvm_userspace_memory_region {
                slot: 0,
                flags: 0,
                guest_phys_addr: 0,
                memory_size: self.size as u64,
                userspace_addr: self.address.as_ptr() as u64,
            };
            // SAFETY: the region is ours, and the kernel keeps it only as an address range: were it
            // unmapped, the guest would fault, not reach other memory.
            unsafe { vm.set_user_memory_region(region) }
        }
    }

    impl Drop for GuestMemory {
        fn drop(&mut self) {
            // SAFETY: our own mapping, and its last use. An error can only mean that it is gone.
            let _ = unsafe { munmap(self.address.as_ptr().cast::<c_void>(), self.size) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the answer is depends on the machine; that there is one, and why, does not.
    #[test]
    fn gives_an_answer() {
        let state = probe();
        println!("{state:?}");
        if !std::path::Path::new("/dev/kvm").exists() {
            assert_eq!(state, KvmState::Absent);
        }
        // PVM emulates guest kernels.
        if std::path::Path::new("/sys/module/kvm_pvm").exists() && state != KvmState::Absent {
            assert!(matches!(state, KvmState::Unusable(_) | KvmState::Inaccessible(_)), "{state:?}");
        }
    }
}
