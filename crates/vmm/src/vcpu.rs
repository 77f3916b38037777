//! The threads in which the guest's code runs.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use model::microvm::Ended;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::ending::Ending;
use crate::gate::{self, Gate, Wanted};
use crate::seccomp::ThreadKind;

/// Sends the threads out of `KVM_RUN`. Its handler does nothing: it is there to interrupt.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Must be called once before the first vCPU is made.
///
/// # Errors
/// The kernel refuses the signal handler.
pub fn prepare_process() -> io::Result<()> {
    extern "C" fn nothing<Info>(_: i32, _: *mut Info, _: *mut std::ffi::c_void) {}
    register_signal_handler(kick_signal(), nothing)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// A virtual processor and its thread.
pub struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    immediate_exit: ImmediateExit,
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

/// The byte in the memory shared with KVM that makes `KVM_RUN` return at once (KVM API, 5,
/// `immediate_exit`).
#[derive(Clone)]
struct ImmediateExit {
    byte: *const AtomicU8,
    /// Keeps the memory mapped.
    _fd: Arc<Mutex<VcpuFd>>,
}

// SAFETY: the byte is only accessed atomically, and is mapped as long as `_fd` lives.
#[allow(unsafe_code)]
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    fn new(fd: &Arc<Mutex<VcpuFd>>) -> Self {
        let mut guard = fd.lock().unwrap_or_else(PoisonError::into_inner);
        let byte = (&raw mut guard.get_kvm_run().immediate_exit).cast::<AtomicU8>().cast_const();
        Self { byte, _fd: fd.clone() }
    }

    #[allow(unsafe_code)]
    fn set(&self, on: bool) {
        // SAFETY: `byte` points into the mapping that `_fd` owns; AtomicU8 has u8's layout, and the
        // kernel only reads it.
        unsafe { &*self.byte }.store(on.into(), Ordering::SeqCst);
    }
}

impl Vcpu {
    /// Starts the thread, resting.
    ///
    /// # Errors
    /// The host gives no more threads.
    pub fn spawn(fd: VcpuFd, bus: Arc<Bus>, ending: Ending) -> io::Result<Self> {
        let fd = Arc::new(Mutex::new(fd));
        let immediate_exit = ImmediateExit::new(&fd);
        let gate = Arc::new(Gate::new(Wanted::Rest));
        let thread = gate::spawn("vCPU", ThreadKind::Vcpu, gate.clone(), ending, {
            let (fd, gate, immediate_exit) = (fd.clone(), gate.clone(), immediate_exit.clone());
            move || {
                let mut fd = fd.lock().unwrap_or_else(PoisonError::into_inner);
                run(&mut fd, &bus, &gate, &immediate_exit)
            }
        })?;
        Ok(Self { fd, immediate_exit, gate, thread: Some(thread) })
    }

    /// Asks the thread; [`Vcpu::wait_until_resting`] waits until it does.
    pub fn ask(&self, wanted: Wanted) {
        self.gate.ask(wanted);
        if wanted != Wanted::Run {
            self.immediate_exit.set(true);
            if let Some(thread) = &self.thread {
                // Fails only if the thread is gone.
                let _ = thread.kill(kick_signal());
            }
        }
    }

    pub fn wait_until_resting(&self) {
        self.gate.wait_until_resting();
    }

    /// The processor, while its thread rests.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.ask(Wanted::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was told of already.
            let _ = thread.join();
        }
    }
}

/// Runs the guest's code until the gate wants something else (`None`) or the machine has ended.
fn run(fd: &mut VcpuFd, bus: &Bus, gate: &Gate, immediate_exit: &ImmediateExit) -> Option<Ended> {
    // In this order, a request that comes in between sets the byte after it was cleared.
    immediate_exit.set(false);
    loop {
        if gate.wanted() != Wanted::Run {
            // KVM finishes an access that was just emulated before it looks at the byte; only then
            // is the processor's state whole (KVM API, 4.10).
            immediate_exit.set(true);
        }
        match fd.run() {
            Ok(exit) => {
                if let Some(ended) = handle(exit, bus) {
                    return Some(ended);
                }
            }
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {
                if gate.wanted() != Wanted::Run {
                    return None;
                }
                immediate_exit.set(false);
                if gate.wanted() != Wanted::Run {
                    immediate_exit.set(true);
                }
            }
            // A vCPU that another one has not started yet, while signals fly.
            Err(error) if error.errno() == rustix::io::Errno::AGAIN.raw_os_error() => {}
            Err(error) => return failed(format!("KVM cannot run the guest: {error}")),
        }
    }
}

fn handle(exit: VcpuExit<'_>, bus: &Bus) -> Option<Ended> {
    match exit {
        VcpuExit::MmioRead(address, data) => bus.read_memory(address, data),
        VcpuExit::MmioWrite(address, data) => bus.write_memory(address, data),
        VcpuExit::IoIn(port, data) => bus.read_port(port, data),
        VcpuExit::IoOut(port, data) => return bus.write_port(port, data),
        // A triple fault: how a kernel without another way resets the machine.
        VcpuExit::Shutdown => return Some(Ended::Reset),
        VcpuExit::InternalError => {
            return failed(
                "KVM met an instruction of the guest that it cannot emulate (KVM_EXIT_INTERNAL_ERROR)".into(),
            );
        }
        VcpuExit::FailEntry(reason, _) => {
            return failed(format!("the host's processor refused to enter the guest (reason {reason:#x})"));
        }
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
        other => return failed(format!("the guest left KVM in an unknown way: {other:?}")),
    }
    None
}

fn failed(message: String) -> Option<Ended> {
    Some(Ended::Failed { message })
}
