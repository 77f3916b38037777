//! The system call filters of the monitor's threads. The lists are data (`seccomp/monitor.json`),
//! compiled by `build.rs`; whatever is not in them ends the process.

use seccompiler::{apply_filter, sock_filter};

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Serves the agent and starts the others.
    Main,
    /// Serves devices.
    Device,
    /// Runs a virtual processor.
    Vcpu,
    /// Serves memory from a snapshot.
    Pager,
}

/// Filters the calling thread, and those that it starts, for good. For all kinds, before any of the
/// guest's code runs.
///
/// # Errors
/// The kernel has no system call filters.
pub fn filter(kind: ThreadKind) -> Result<(), seccompiler::Error> {
    apply_filter(match kind {
        ThreadKind::Main => &MAIN,
        ThreadKind::Device => &DEVICE,
        ThreadKind::Vcpu => &VCPU,
        ThreadKind::Pager => &PAGER,
    })
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
