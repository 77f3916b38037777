//! The microVM monitor: one process per task, which runs the task's virtual machine with KVM.
//!
//! Everything a guest does is hostile, and this process is what stands between it and the host:
//! it is small, opens no file itself (the agent hands it all it may touch), and runs in a jail
//! with a system call filter per kind of thread.
//!
//! ```text
//! agent ── Request (socket, open files) ──▶ main thread ── builds ──▶ machine
//!                                                                     ├─ vCPU threads (KVM_RUN)
//!        guest's MMIO/port access ─ vCPU thread ─▶ bus ─▶ transport ─▶│
//!        guest's queue notification ─ ioeventfd ─▶ device threads ────┴─▶ devices in `virtio/`
//! ```

pub mod acpi;
pub mod backends;
pub mod boot;
pub mod builder;
pub mod bus;
pub mod control;
pub mod device_thread;
pub mod devices;
pub mod ending;
pub mod files;
pub mod gate;
pub mod log;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod rate_limiter;
pub mod seccomp;
pub mod snapshot;
pub mod userfaultfd;
pub mod vcpu;
pub mod virtio;
pub mod vm;

/// The guest's memory.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
