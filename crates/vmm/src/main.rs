//! `coracle-vmm`: a task's microVM monitor. Started by `coracle-jailer` with three descriptors (see
//! `model::microvm`); it takes no arguments and opens nothing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use model::microvm::{CONTROL_FD, ENDED_FD, Ended, KVM_FD};
use vmm::log;
use vmm::monitor::Monitor;
use vmm::seccomp::{self, ThreadKind};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::warning("the monitor cannot work", &error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let (listener, ended_file, kvm) = (inherited(CONTROL_FD)?, inherited(ENDED_FD)?, inherited(KVM_FD)?);
    let ended_file = File::from(ended_file);
    vmm::ending::end_on_panic(ended_file.try_clone()?);
    keep_to_one_arena()?;
    vmm::vcpu::prepare_process()?;
    seccomp::filter(ThreadKind::Main).map_err(io::Error::other)?;
    let mut monitor = Monitor::new(vmm::vm::host(kvm), listener)?;
    let ended = monitor
        .run()
        .unwrap_or_else(|error| Ended::Failed { message: format!("the monitor failed: {error}") });
    // First the file: who hears of the end over the socket may look into it.
    let written =
        serde_json::to_vec(&ended).map_err(io::Error::from).and_then(|bytes| (&ended_file).write_all(&bytes));
    monitor.tell(&ended);
    // The threads go with the process: there is nothing for them to clean up.
    written
}

/// Has all threads allocate from one arena. glibc makes one for each of the first eight and then counts the
/// processors in a file to know how many there may be (mallopt(3), `M_ARENA_TEST`), which the filter forbids.
#[allow(unsafe_code)]
fn keep_to_one_arena() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's, before there is another thread.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } != 1 {
        return Err(io::Error::other("the allocator cannot be kept to one arena"));
    }
    Ok(())
}

/// A descriptor that the parent has left open for this process, closed to its own children.
#[allow(unsafe_code)]
fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    // SAFETY: only asks the kernel about a number, which may be closed.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    fcntl_getfd(borrowed)
        .and_then(|flags| fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC))
        .map_err(|error| io::Error::other(format!("descriptor {fd} was not handed over: {error}")))?;
    // SAFETY: it is open, and nothing else in this process owns it: this is called once for each,
    // before anything is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
