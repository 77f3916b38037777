//! The few requests of rtnetlink(7) that configure an interface.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

// <linux/netlink.h>
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const HEADER: usize = 16;
// <linux/rtnetlink.h>
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
// <linux/if_link.h>, <linux/if_addr.h>, <linux/neighbour.h>
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const AF_INET: u8 = 2;

/// A request to the kernel.
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    what: String,
}

impl Request {
    fn new(kind: u16, flags: u16, header: &[&[u8]], what: String) -> Self {
        Self { kind, flags, body: header.concat(), what }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Each attribute begins at a multiple of four bytes; its length does not count the padding.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.body.extend_from_slice(&length.to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    /// Brings an interface up, with this hardware address and MTU (bytes).
    pub fn up(index: u32, mac: Option<[u8; 6]>, mtu: Option<u32>) -> Self {
        let up = IFF_UP.to_ne_bytes();
        let header: &[&[u8]] = &[&[0; 4], &index.to_ne_bytes(), &up, &up];
        let mut request = Self::new(RTM_NEWLINK, 0, header, format!("bring up interface {index}"));
        if let Some(mac) = mac {
            request = request.attribute(IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = mtu {
            request = request.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        request
    }

    /// Takes an interface down, and with it its routes and neighbours.
    pub fn down(index: u32) -> Self {
        let header: &[&[u8]] = &[&[0; 4], &index.to_ne_bytes(), &[0; 4], &IFF_UP.to_ne_bytes()];
        Self::new(RTM_NEWLINK, 0, header, format!("take down interface {index}"))
    }

    /// Takes an address away.
    pub fn no_address(index: u32, address: Ipv4Addr) -> Self {
        let header: &[&[u8]] = &[&[AF_INET, 32, 0, 0], &index.to_ne_bytes()];
        Self::new(RTM_DELADDR, 0, header, format!("take away address {address}"))
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets())
    }

    /// Gives an interface an address of its own, without a network around it.
    pub fn address(index: u32, address: Ipv4Addr) -> Self {
        let header: &[&[u8]] = &[&[AF_INET, 32, 0, 0], &index.to_ne_bytes()];
        Self::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, header, format!("address {address}"))
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets())
    }

    /// Fixes a neighbour's hardware address: it is never asked for, and nobody can claim it.
    pub fn neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Self {
        let header: &[&[u8]] =
            &[&[AF_INET, 0, 0, 0], &index.to_ne_bytes(), &NUD_PERMANENT.to_ne_bytes(), &[0, 0]];
        Self::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, header, format!("neighbour {address}"))
            .attribute(NDA_DST, &address.octets())
            .attribute(NDA_LLADDR, &mac)
    }

    /// The default route, through a gateway that is taken to be on the link.
    pub fn default_route(index: u32, gateway: Ipv4Addr, source: Ipv4Addr) -> Self {
        let header: &[&[u8]] =
            &[&[AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST], &RTNH_F_ONLINK.to_ne_bytes()];
        Self::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, header, format!("route through {gateway}"))
            .attribute(RTA_OIF, &index.to_ne_bytes())
            .attribute(RTA_GATEWAY, &gateway.octets())
            .attribute(RTA_PREFSRC, &source.octets())
    }

    fn message(&self) -> Vec<u8> {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        let flags = self.flags | NLM_F_REQUEST | NLM_F_ACK;
        let header: [&[u8]; 4] =
            [&length.to_ne_bytes(), &self.kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]];
        [&header.concat(), self.body.as_slice()].concat()
    }
}

/// A socket of the network namespace in which it was opened.
pub struct Netlink(OwnedFd);

impl Netlink {
    pub fn open() -> Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .context("open a netlink socket")?;
        Ok(Self(socket))
    }

    /// An interface's number.
    pub fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    /// Sends a request and waits for its effect.
    ///
    /// # Errors
    /// The kernel's, with what was asked for.
    pub fn send(&self, request: &Request) -> Result<()> {
        self.exchange(request).with_context(|| request.what.clone())
    }

    fn exchange(&self, request: &Request) -> Result<()> {
        sendto(&self.0, &request.message(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0u8; 4096];
        let (length, _) = recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
        let field = |at: usize| answer[..length].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        match (answer.get(4..6), field(HEADER).map(i32::from_ne_bytes)) {
            (Some(kind), Some(0)) if kind == NLMSG_ERROR.to_ne_bytes() => Ok(()),
            (Some(kind), Some(errno)) if kind == NLMSG_ERROR.to_ne_bytes() => {
                Err(io::Error::from_raw_os_error(-errno).into())
            }
            _ => bail!("the kernel's answer is not understood"),
        }
    }
}
