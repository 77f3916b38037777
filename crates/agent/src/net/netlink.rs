//! A blocking rtnetlink socket that sends several requests in one system call.
//!
//! rtnetlink requests are carried out inside `sendmsg` itself, so a blocking socket with a batch
//! costs one system call and some tens of microseconds, where an asynchronous round trip per
//! request costs several wake-ups. A socket belongs for ever to the network namespace in which it
//! was made; any thread may use it afterwards.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::netns;
use model::network::{Cidr, Mac};

/// The kernel refused one request of a batch.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused to {action}")]
pub struct NetlinkError {
    /// What was asked, in words.
    pub action: String,
    #[source]
    pub source: io::Error,
}

impl NetlinkError {
    fn new(action: impl Into<String>, source: io::Error) -> Self {
        Self { action: action.into(), source }
    }

    /// True when the kernel answered with this error number.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

/// One request of a batch.
#[derive(Debug)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    action: String,
    /// An answer that means the wished state is already there.
    tolerated: Option<rustix::io::Errno>,
}

impl Request {
    fn new(message: RouteNetlinkMessage, flags: u16, action: impl Into<String>) -> Self {
        Self { message, flags, action: action.into(), tolerated: None }
    }

    fn tolerate(mut self, errno: rustix::io::Errno) -> Self {
        self.tolerated = Some(errno);
        self
    }

    /// Creates a veth pair: `name` in the socket's namespace and `peer` in `peer_netns`
    /// (the socket's own when `None`). Both are down.
    pub fn add_veth(
        name: &str,
        mac: Mac,
        peer: &str,
        peer_mac: Mac,
        peer_netns: Option<BorrowedFd<'_>>,
        mtu: u32,
    ) -> Self {
        use std::os::fd::AsRawFd;
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(peer.into()),
            LinkAttribute::Address(peer_mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
        ];
        if let Some(netns) = peer_netns {
            far.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        }
        let mut near = LinkMessage::default();
        near.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        Self::new(
            RouteNetlinkMessage::NewLink(near),
            NLM_F_CREATE | NLM_F_EXCL,
            format!("create the veth pair {name}"),
        )
    }

    /// Changes a link: brings it up, and sets MAC, MTU and alias where given.
    pub fn set_link_up(index: u32, mac: Option<Mac>, mtu: Option<u32>, alias: Option<&str>) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        if let Some(mac) = mac {
            message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        }
        if let Some(mtu) = mtu {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        if let Some(alias) = alias {
            message.attributes.push(LinkAttribute::IfAlias(alias.into()));
        }
        Self::new(RouteNetlinkMessage::SetLink(message), 0, format!("set up link {index}"))
    }

    /// Deletes a link; one that does not exist is fine.
    pub fn delete_link(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self::new(RouteNetlinkMessage::DelLink(message), 0, format!("delete link {index}"))
            .tolerate(rustix::io::Errno::NODEV)
    }

    /// Adds an address to a link (nothing happens when it is there). Loopback addresses other
    /// than 127/8 get global scope, so that routing may choose them as a source.
    pub fn add_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> Self {
        Self::new(
            RouteNetlinkMessage::NewAddress(address_message(index, address, prefix_len)),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("add address {address}/{prefix_len} to link {index}"),
        )
        .tolerate(rustix::io::Errno::EXIST)
    }

    /// Removes an address from a link; one that is not there is fine.
    pub fn delete_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> Self {
        Self::new(
            RouteNetlinkMessage::DelAddress(address_message(index, address, prefix_len)),
            0,
            format!("remove address {address}/{prefix_len} from link {index}"),
        )
        .tolerate(rustix::io::Errno::ADDRNOTAVAIL)
    }

    /// Adds or replaces a permanent neighbour entry: no ARP is ever sent for it, and no ARP
    /// packet can change it.
    pub fn set_neighbour(index: u32, address: Ipv4Addr, mac: Mac) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        ];
        Self::new(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("set neighbour {address} on link {index}"),
        )
    }

    /// Adds or replaces the route to a destination that is directly on a link.
    pub fn set_link_route(destination: Cidr, index: u32, source: Ipv4Addr) -> Self {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.base, destination.prefix_len)
            .output_interface(index)
            .pref_source(source)
            .scope(RouteScope::Link)
            .build();
        Self::new(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("route {destination} to link {index}"),
        )
    }

    /// Adds or replaces a route that refuses its destinations (ICMP host unreachable).
    pub fn set_unreachable_route(destination: Cidr) -> Self {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.base, destination.prefix_len)
            .kind(RouteType::Unreachable)
            .build();
        Self::new(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("refuse {destination}"),
        )
    }

    /// Adds or replaces a route through a gateway that is taken to be on the link.
    pub fn set_gateway_route(
        destination: Cidr,
        gateway: Ipv4Addr,
        index: u32,
        source: Option<Ipv4Addr>,
    ) -> Self {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.base, destination.prefix_len)
            .gateway(gateway)
            .output_interface(index)
            .onlink();
        if let Some(source) = source {
            builder = builder.pref_source(source);
        }
        Self::new(
            RouteNetlinkMessage::NewRoute(builder.build()),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("route {destination} through {gateway}"),
        )
    }
}

fn address_message(index: u32, address: Ipv4Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.header.scope = if address.is_loopback() { AddressScope::Host } else { AddressScope::Universe };
    message.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
    message
}

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub alias: Option<String>,
    /// Bytes.
    pub mtu: Option<u32>,
    pub up: bool,
}

/// The socket. Blocking; safe to use from several threads (one batch at a time).
#[derive(Debug)]
pub struct Netlink {
    inner: Mutex<Inner>,
}

struct Inner {
    socket: Socket,
    sequence: u32,
    receive: Vec<u8>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// A socket of this netlink protocol, connected to the kernel, in the calling thread's network
/// namespace.
pub(super) fn connect(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // An answer is queued before `send` returns: waiting longer means that it was lost.
    rustix::net::sockopt::set_socket_timeout(
        socket.as_fd(),
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(5)),
    )?;
    Ok(socket)
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = connect(NETLINK_ROUTE)?;
        Ok(Self { inner: Mutex::new(Inner { socket, sequence: 0, receive: Vec::with_capacity(64 * 1024) }) })
    }

    /// A socket in the given network namespace.
    pub fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        netns::run_in(netns, Self::open)
    }

    /// Sends all requests at once. The kernel carries out each of them, in order, also after one
    /// that failed; the first failure is returned.
    pub fn batch(&self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let first = inner.sequence.wrapping_add(1);
        let mut buffer = Vec::with_capacity(256 * requests.len());
        let mut waiting = Vec::with_capacity(requests.len());
        for request in requests {
            inner.append(&mut buffer, request.message, request.flags | NLM_F_ACK);
            waiting.push((request.action, request.tolerated));
        }
        let all = || "take a batch of requests";
        inner.socket.send(&buffer, 0).map_err(|error| NetlinkError::new(all(), error))?;
        let mut answers = 0;
        let mut failure = None;
        while answers < waiting.len() {
            for message in inner.receive().map_err(|error| NetlinkError::new(all(), error))? {
                let NetlinkPayload::Error(answer) = message.payload else {
                    continue;
                };
                let position = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some((action, tolerated)) = waiting.get(position) else {
                    continue;
                };
                answers += 1;
                let error = answer.to_io();
                let fine = answer.code.is_none()
                    || tolerated.is_some_and(|e| error.raw_os_error() == Some(e.raw_os_error()));
                if !fine && failure.is_none() {
                    failure = Some(NetlinkError::new(action.clone(), error));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// All links of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let messages = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "list links")?;
        Ok(messages.into_iter().filter_map(parse_link).collect())
    }

    /// The link called `name`, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut query = LinkMessage::default();
        query.attributes = vec![LinkAttribute::IfName(name.into())];
        let action = || format!("look up link {name}");
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = Vec::new();
        inner.append(&mut buffer, RouteNetlinkMessage::GetLink(query), 0);
        let sequence = inner.sequence;
        inner.socket.send(&buffer, 0).map_err(|error| NetlinkError::new(action(), error))?;
        loop {
            for message in inner.receive().map_err(|error| NetlinkError::new(action(), error))? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(parse_link(message)),
                    NetlinkPayload::Error(answer) => {
                        let error = answer.to_io();
                        return match error.raw_os_error() {
                            Some(code) if code == rustix::io::Errno::NODEV.raw_os_error() => Ok(None),
                            _ => Err(NetlinkError::new(action(), error)),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// All IPv4 addresses of the namespace, as (link index, address, prefix length).
    pub fn addresses(&self) -> Result<Vec<(u32, Ipv4Addr, u8)>, NetlinkError> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet;
        let messages = self.dump(RouteNetlinkMessage::GetAddress(query), "list addresses")?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(message) => Some(message),
                _ => None,
            })
            .filter_map(|message| {
                let address = message.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                })?;
                Some((message.header.index, address, message.header.prefix_len))
            })
            .collect())
    }

    /// All IPv4 routes of the namespace, of every table.
    pub fn routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        let messages = self.dump(RouteNetlinkMessage::GetRoute(query), "list routes")?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    fn dump(
        &self,
        query: RouteNetlinkMessage,
        action: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = Vec::new();
        inner.append(&mut buffer, query, NLM_F_DUMP);
        let sequence = inner.sequence;
        inner.socket.send(&buffer, 0).map_err(|error| NetlinkError::new(action, error))?;
        let mut found = Vec::new();
        loop {
            for message in inner.receive().map_err(|error| NetlinkError::new(action, error))? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(answer) if answer.code.is_some() => {
                        return Err(NetlinkError::new(action, answer.to_io()));
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Inner {
    fn append(&mut self, buffer: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = buffer.len();
        // Messages of a batch start on 4-byte boundaries (NLMSG_ALIGN).
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }

    /// The messages of one datagram. Those that the parser does not know are left out.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        self.receive.clear();
        let received = loop {
            match self.socket.recv(&mut self.receive, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if received > self.receive.len() {
            return Err(io::Error::other("a netlink answer was truncated"));
        }
        let mut rest = &self.receive[..];
        let mut messages = Vec::new();
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::Error::other("a netlink answer has a bad length"));
            }
            match NetlinkMessage::deserialize(&rest[..length]) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!(%error, "unknown netlink message"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}

fn parse_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut name = None;
    let mut alias = None;
    let mut mtu = None;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::IfAlias(text) => alias = Some(text),
            LinkAttribute::Mtu(bytes) => mtu = Some(bytes),
            _ => {}
        }
    }
    Some(Link {
        index: message.header.index,
        name: name?,
        alias,
        mtu,
        up: message.header.flags.contains(LinkFlags::Up),
    })
}
