//! What the agent and a task's microVM monitor (`coracle-vmm`) say to each other.
//!
//! The monitor inherits a listening Unix socket of type `SOCK_SEQPACKET`; the agent connects, and
//! reconnects after a restart. One message per packet: a JSON document of at most
//! [`MAX_MESSAGE`] bytes, with the open files it speaks of attached (`SCM_RIGHTS`, unix(7)), at
//! most [`MAX_FILES`]. The monitor opens no file itself: everything it may touch is handed to it.
//!
//! The agent sends a [`Request`]; the monitor answers each with one [`Response`], in order. Beside
//! them it sends [`Response::Ended`] once, when the machine has ended, and to each connection made
//! after that.

use serde::{Deserialize, Serialize};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// The most open files one message carries; the kernel's limit (`SCM_MAX_FD`).
pub const MAX_FILES: usize = 253;
/// The descriptor under which the monitor inherits its listening socket.
pub const CONTROL_FD: i32 = 3;
/// The descriptor of a file into which the monitor writes an [`Ended`] document when the machine
/// has ended, for an agent that was away meanwhile.
pub const ENDED_FD: i32 = 4;
/// The descriptor under which the monitor inherits the open `/dev/kvm`.
pub const KVM_FD: i32 = 5;
/// The context id of every guest: each has a vsock device of its own, so they need not differ.
pub const GUEST_CID: u64 = 3;
/// The vsock port on which the supervisor in a guest listens.
pub const SUPERVISOR_PORT: u32 = 1024;
/// The unit of a disk's parts, in bytes: each part begins at a multiple of it.
pub const PART_ALIGNMENT: u64 = 4096;
/// A guest's first disk: the EROFS layers of the task's images, one behind the other.
pub const LAYERS_DEVICE: &str = "/dev/vda";
/// A guest's second disk: ext4, for writable layers and volumes.
pub const SCRATCH_DEVICE: &str = "/dev/vdb";

/// An open file among those attached to the message, by its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attached(pub u8);

/// Agent to monitor: the only things a monitor can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Build a machine and run it. Once, as the first request (this or [`Request::Restore`]).
    Boot(Box<MachineConfig>),
    /// Run a machine from a snapshot.
    Restore(Box<RestoreConfig>),
    /// Stop the virtual processors and device threads, until [`Request::Resume`] or the end of this
    /// connection: an agent that is gone shall not leave a task standing still.
    Pause,
    Resume,
    /// Write the paused machine's state and memory into files.
    Snapshot {
        state: Attached,
        memory: Attached,
        /// The monitor's `/proc/PID/pagemap`: what the guest never touched is then not read, which
        /// most of a machine's memory is that has just booted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pages: Option<Attached>,
    },
    /// Ask the guest for this much of its memory back, in MiB.
    Balloon {
        target_mib: u32,
    },
    /// Numbers for people and benchmarks.
    Describe,
    /// End the machine at once. In order is the supervisor's business (the guest powers off).
    Stop,
}

/// Monitor to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Response {
    Done,
    Description(Description),
    /// The request was refused or failed; nothing has changed unless the machine has ended, too.
    Failed {
        message: String,
    },
    Ended(Ended),
}

/// A machine to be booted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// 1 to 16.
    pub vcpus: u8,
    pub memory_mib: u32,
    /// An ELF `vmlinux` (x86-64) or a bzImage.
    pub kernel: Attached,
    pub initramfs: Option<Attached>,
    pub command_line: String,
    pub devices: Devices,
    /// Where the guest's serial console (ttyS0) is written to; `None`: there is no serial port.
    pub console: Option<Attached>,
}

/// A machine to be restored. Its processors, memory size and the number and kinds of its devices
/// are the snapshot's; what stands behind the devices is given anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    pub state: Attached,
    pub memory: Attached,
    pub devices: Devices,
    pub console: Option<Attached>,
    /// Whether the guest is told that it is a copy (VM generation id): true for all but a machine
    /// that is resumed in place of itself.
    pub new_identity: bool,
    /// An open `/dev/userfaultfd` (Linux 6.1): the memory is read from its file page by page, when it
    /// is first touched, instead of mapped from it; then a file that becomes unreadable ends the
    /// machine with a reason. The file may not change as long as the machine lives.
    #[serde(default)]
    pub userfaultfd: Option<Attached>,
}

/// The devices, in the order in which the guest finds them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// `vda`, `vdb`, …
    pub disks: Vec<Disk>,
    pub network: Option<NetworkInterface>,
    pub vsock: Option<Vsock>,
}

/// A disk: the contents of files, one behind the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Regular files or block devices. The guest sees part N+1 begin at the next multiple of
    /// [`PART_ALIGNMENT`] after part N; the gap reads as zeros. No part: a disk of size 0.
    pub parts: Vec<Attached>,
    pub read_only: bool,
    pub rate_limit: Option<RateLimit>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// An open tap device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`); `None`: no cable is plugged in.
    pub tap: Option<Attached>,
    pub mac: [u8; 6],
    pub mtu: Option<u16>,
    /// From the guest.
    pub transmit_limit: Option<RateLimit>,
    /// To the guest.
    pub receive_limit: Option<RateLimit>,
}

/// Connections from the host to the guest. The guest can open none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    pub ports: Vec<VsockPort>,
}

/// Whoever connects to this listening Unix socket (`SOCK_STREAM`) talks to this port of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockPort {
    pub listener: Attached,
    pub port: u32,
}

/// Two token buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub bytes: Option<TokenBucket>,
    pub operations: Option<TokenBucket>,
}

/// Tokens come back evenly over time, up to `burst`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens a second.
    pub rate: u64,
    /// Tokens that can be had at once.
    pub burst: u64,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum Ended {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself: its supervisor never does, so its kernel crashed.
    Reset,
    /// The agent asked for it.
    Stopped,
    /// The host's end of a device is gone for good: which.
    DeviceGone { device: String },
    /// The monitor cannot go on.
    Failed { message: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub vcpus: u8,
    pub memory_mib: u32,
    pub paused: bool,
    /// Guest memory that the balloon holds, in MiB.
    pub ballooned_mib: u32,
    /// Microseconds since the request that began the machine, until its processors ran.
    pub started_in_us: u64,
}
