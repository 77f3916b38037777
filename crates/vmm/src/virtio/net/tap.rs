//! The host's end of a network device: a tap device (`Documentation/networking/tuntap.rst`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::HEADER;

// linux/if_tun.h
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// An open tap device, non-blocking, each frame behind a header of [`HEADER`] bytes.
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// # Errors
    /// It is not a tap device opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, or is gone.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let needed = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let tap = Self(fd);
        if tap.flags()? & needed != needed {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::io::ioctl_fionbio(&tap.0, true)?;
        let size = HEADER as libc::c_int;
        // SAFETY: the kernel reads an int.
        #[allow(unsafe_code)]
        check(unsafe { libc::ioctl(tap.0.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        tap.set_offloads(0)?;
        Ok(tap)
    }

    fn flags(&self) -> io::Result<libc::c_short> {
        // SAFETY: zeros are a valid `ifreq`; the kernel writes one, with the flags in the union.
        #[allow(unsafe_code)]
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            check(libc::ioctl(self.0.as_raw_fd(), TUNGETIFF, &raw mut request))?;
            Ok(request.ifr_ifru.ifru_flags)
        }
    }

    /// Lets the host leave to the guest what a driver with these features takes on: checksums not
    /// computed, and segments not cut.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        let mut offloads = 0;
        // Segments without checksums make no sense (5.1.3.1).
        if features & (1 << VIRTIO_NET_F_GUEST_CSUM) != 0 {
            for (feature, offload) in
                [(VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6)]
            {
                if features & (1 << feature) != 0 {
                    offloads |= offload;
                }
            }
            offloads |= TUN_F_CSUM;
        }
        // SAFETY: the argument is a number.
        #[allow(unsafe_code)]
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETOFFLOAD, offloads) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
