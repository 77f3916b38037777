//! A tap device in a network namespace of its own, and its other end. Needs root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::OnceLock;

use rustix::net::{RecvFlags, SendFlags, recv, send};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const NAME: &str = "fuzz0";
/// For local experiments (IEEE 802): no kernel has anything to say in it.
const EXPERIMENTAL: u16 = 0x88b5;

/// One for the whole process: making one takes longer than a thousand runs.
pub struct Tap {
    tap: OwnedFd,
    /// A packet socket on the host's end (packet(7)), with a header before each frame.
    wire: OwnedFd,
}

impl Tap {
    /// The tap, with nothing left in it of what was before.
    pub fn get() -> &'static Self {
        static TAP: OnceLock<Tap> = OnceLock::new();
        let tap = TAP.get_or_init(|| {
            // In a thread, so that whoever calls stays in its own namespace.
            std::thread::spawn(Tap::new).join().expect("it does not panic").expect("root, and /dev/net/tun")
        });
        tap.drain();
        tap
    }

    pub fn device(&self) -> OwnedFd {
        self.tap.try_clone().expect("few descriptors are open")
    }

    /// Sends a frame to the guest; the kernel refuses some.
    pub fn send(&self, frame: &[u8]) {
        let _ = send(&self.wire, frame, SendFlags::DONTWAIT);
    }

    fn drain(&self) {
        let mut frame = vec![0; 1 << 17];
        while rustix::io::read(&self.tap, &mut frame).is_ok_and(|length| length > 0) {}
        while recv(&self.wire, &mut frame, RecvFlags::DONTWAIT).is_ok() {}
    }

    #[allow(unsafe_code)]
    fn new() -> io::Result<Self> {
        // SAFETY: concerns this thread only, which has nothing of the network open.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
        let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: zeros are a valid `ifreq`; the kernel reads and writes one.
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as _;
            check(libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request))?;
        }
        rustix::io::ioctl_fionbio(&tap, true)?;
        let up = Command::new("ip").args(["link", "set", NAME, "mtu", "9000", "up"]).status()?;
        if !up.success() {
            return Err(io::Error::other("ip(8)"));
        }
        Ok(Self { tap: tap.into(), wire: wire()? })
    }
}

#[allow(unsafe_code)]
fn wire() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let protocol = EXPERIMENTAL.to_be();
    // SAFETY: takes numbers; the descriptor is new and ours.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_PACKET, kind, protocol.into());
        check(socket)?;
        OwnedFd::from_raw_fd(socket)
    };
    let on: libc::c_int = 1;
    let name = std::ffi::CString::new(NAME)?;
    // SAFETY: an int and a whole address are passed by their lengths; zeros are a valid address.
    unsafe {
        let size = size_of_val(&on) as libc::socklen_t;
        let fd = socket.as_fd().as_raw_fd();
        check(libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), size))?;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as _;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as _;
        check(libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as _))?;
    }
    Ok(socket)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
