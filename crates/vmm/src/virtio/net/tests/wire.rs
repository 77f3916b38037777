//! A real tap device in a network namespace of the test's own, and a packet socket at its other end.
#![allow(unsafe_code, reason = "there are no safe wrappers for these calls; for tests only")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
pub(super) const NAME: &str = "tap0";
/// For local experiments (IEEE 802): no kernel has anything to say in it.
pub(super) const EXPERIMENTAL: u16 = 0x88b5;
pub(super) const IPV4: u16 = 0x0800;
/// Of the header before each frame of a packet socket (`struct virtio_net_hdr`).
pub(super) const HEADER: usize = 10;

/// Runs a test in a network namespace that is gone when it ends, however it does. Needs root.
pub(super) fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        // SAFETY: concerns this thread only, which has nothing of the network open.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).expect("root");
        // Otherwise the kernel talks about neighbours on every interface.

        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        test();
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic));
}

/// Makes a tap device. One of before may be busy for a moment: another test's child process has every
/// descriptor until it executes a program.
pub(super) fn tap(flags: libc::c_int) -> OwnedFd {
    let file: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: zeros are a valid `ifreq`; the kernel reads and writes one.
    unsafe {
        let mut request: libc::ifreq = zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = check(libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request)) {
            assert!(error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline, "{error}");
            thread::yield_now();
        }
    }
    file.into()
}

/// Makes a tap device as the agent does, and sets it up.
pub(super) fn ready_tap(mtu: u32) -> OwnedFd {
    let tap = tap(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    ip(&["link", "set", NAME, "mtu", &mtu.to_string(), "up"]);
    tap
}

pub(super) fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success());
}

/// A packet socket on the host's end (packet(7)), with a header before each frame.
pub(super) struct Wire(OwnedFd);

impl Wire {
    /// Hears frames of this type from the guest.
    pub(super) fn new(ether_type: u16) -> Self {
        // SAFETY: plain calls with valid arguments; the descriptor is new.
        unsafe {
            let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::socket(libc::AF_PACKET, flags, ether_type.to_be().into());
            check(fd).unwrap();
            let socket = OwnedFd::from_raw_fd(fd);
            for (option, value) in [(libc::PACKET_VNET_HDR, 1), (libc::PACKET_IGNORE_OUTGOING, 1)] {
                let size = size_of::<libc::c_int>() as _;
                check(libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const value).cast(), size))
                    .unwrap();
            }
            let size: libc::c_int = 8 << 20;
            let len = size_of::<libc::c_int>() as _;
            check(libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                len,
            ))
            .unwrap();
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = libc::AF_PACKET as _;
            address.sll_protocol = ether_type.to_be();
            address.sll_ifindex = libc::if_nametoindex(c"tap0".as_ptr()) as _;
            check(libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as _)).unwrap();
            Self(socket)
        }
    }

    /// Sends a frame to the guest.
    pub(super) fn send(&self, header: [u8; HEADER], frame: &[u8]) -> io::Result<()> {
        let packet = [&header, frame].concat();
        rustix::io::write(&self.0, &packet)?;
        Ok(())
    }

    /// The next frame from the guest, if there is one.
    pub(super) fn receive(&self) -> Option<([u8; HEADER], Vec<u8>)> {
        let mut packet = vec![0; 1 << 17];
        match rustix::io::read(&self.0, &mut packet) {
            Ok(len) => Some((packet[..HEADER].try_into().unwrap(), packet[HEADER..len].to_vec())),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
