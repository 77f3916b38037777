//! Tap devices: the links of microVMs. Where a container's link is a veth with the task's end in the
//! task's namespace, a microVM's is a tap in the router's namespace whose other end is a file that the
//! machine's monitor holds. It is gone when nobody holds that file any more.
//!
//! Source: Linux, Documentation/networking/tuntap.rst.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use model::VpcId;

/// An up tap in a VPC's router without an address, for a task to come.
#[derive(Debug)]
pub struct PreparedTap {
    pub(super) vpc: VpcId,
    pub(super) link: String,
    pub(super) link_index: u32,
    pub(super) file: OwnedFd,
}

/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL`: Ethernet frames, each with a virtio header in
/// front of it; an existing device of that name is an error (linux/if_tun.h).
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000 | 0x8000;

/// Makes a tap called `name` in the calling thread's network namespace, and opens it without blocking.
///
/// # Errors
/// There is no `/dev/net/tun`, the name is in use or has more than 15 bytes, or CAP_NET_ADMIN is missing.
pub fn create(name: &str) -> io::Result<OwnedFd> {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let device = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
    set_interface(&device, name)?;
    Ok(device.into())
}

/// `struct ifreq` (netdevice(7)), of which only name and flags are used.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

#[allow(unsafe_code)]
fn set_interface(device: &File, name: &str) -> io::Result<()> {
    /// `TUNSETIFF`, `_IOW('T', 202, int)`.
    const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
    let mut request = InterfaceRequest { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    // The last byte stays zero.
    let place = request.name.get_mut(..name.len()).filter(|place| place.len() < 16);
    place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    // SAFETY: this request of a tun file takes a pointer to a `struct ifreq`, which is 40 bytes like ours.
    unsafe {
        let setter = rustix::ioctl::Setter::<TUNSETIFF, InterfaceRequest>::new(request);
        rustix::ioctl::ioctl(device.as_fd(), setter)?;
    }
    Ok(())
}
