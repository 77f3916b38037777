//! The link between a task and its VPC's router, and the configuration of the task's end.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use model::VpcId;
use model::network::{Eni, Mac};
use serde::{Deserialize, Serialize};

use super::error::NetError;
use super::names::TASK_INTERFACE;
use super::netlink::{Netlink, Request};
use super::netns;
use super::router::{ALL, ROUTER_MAC, write_sysctl};

/// Task metadata and credentials endpoint; the supervisor serves it inside the task's namespace
/// ("Amazon ECS task metadata endpoint version 4").
pub const TASK_METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);

/// An attached link, as the agent's ledger keeps it. With it, a restarted agent can detach the
/// link, or re-admit it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLink {
    pub vpc: VpcId,
    /// The router's end, in the router's namespace.
    pub link: String,
    pub address: Ipv4Addr,
    pub mac: Mac,
}

impl TaskLink {
    /// `iifname . ether saddr . ip saddr`: 16, 6 (padded to 8) and 4 bytes.
    pub(super) fn source_key(&self) -> Vec<u8> {
        let mut key = [0u8; 28];
        let name = self.link.as_bytes();
        let length = name.len().min(15);
        key[..length].copy_from_slice(&name[..length]);
        key[16..22].copy_from_slice(&self.mac.0);
        key[24..].copy_from_slice(&self.address.octets());
        key.to_vec()
    }
}

/// A link whose task end is up in the task's namespace, without an address. It holds a socket in
/// that namespace, so attaching needs no thread to enter it; dropping it lets the namespace (and
/// with it the link) go once the task's processes are gone.
#[derive(Debug)]
pub struct PreparedLink {
    pub(super) vpc: VpcId,
    pub(super) link: String,
    pub(super) link_index: u32,
    pub(super) inside: Netlink,
    pub(super) inside_index: u32,
    pub(super) mtu: u32,
}

impl PreparedLink {
    /// The VPC in whose router the link was made.
    pub fn vpc(&self) -> &VpcId {
        &self.vpc
    }
}

/// What the task's interface shall be. A task sees its address as a /32 and reaches all others,
/// those of its own subnet too, through the router: there is no shared segment to spoof on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceSpec {
    /// Interface name, as it was created.
    pub name: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// Bytes.
    pub mtu: u32,
}

impl InterfaceSpec {
    /// The configuration of a network interface called `eth0`.
    pub fn of(eni: &Eni, mtu: u32) -> Self {
        Self { name: TASK_INTERFACE.into(), mac: eni.mac, address: eni.address, gateway: eni.gateway, mtu }
    }

    pub(super) fn requests(&self, index: u32) -> Vec<Request> {
        vec![
            Request::set_link_up(index, Some(self.mac), Some(self.mtu), None),
            Request::add_address(index, self.address, 32),
            Request::set_neighbour(index, self.gateway, ROUTER_MAC),
            Request::set_gateway_route(ALL, self.gateway, index, Some(self.address)),
        ]
    }
}

/// Configures loopback and the interface `spec.name` inside the namespace `netns`, as
/// [`Network::attach`](super::Network::attach) does for a prepared link. Repeatable.
pub fn configure_inside(netns: BorrowedFd<'_>, spec: &InterfaceSpec) -> Result<(), NetError> {
    let inside = enter_task(netns).map_err(NetError::io("enter the task's network namespace"))?;
    set_up_loopback(&inside)?;
    let index = inside.link(&spec.name)?.ok_or_else(|| NetError::LinkVanished(spec.name.clone()))?.index;
    inside.batch(spec.requests(index))?;
    Ok(())
}

/// Opens a socket in a task's namespace, and keeps IPv6 off the interfaces to come (loopback keeps
/// its `::1`): the VPC has no IPv6, and an interface's own link-local address would be noise.
pub(super) fn enter_task(netns: BorrowedFd<'_>) -> io::Result<Netlink> {
    netns::run_in(netns, || {
        write_sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        Netlink::open()
    })
}

pub(super) fn set_up_loopback(inside: &Netlink) -> Result<(), NetError> {
    let lo = inside.link("lo")?.ok_or_else(|| NetError::LinkVanished("lo".into()))?;
    inside.batch(vec![
        Request::set_link_up(lo.index, None, None, None),
        Request::add_address(lo.index, TASK_METADATA_ADDRESS, 32),
    ])?;
    Ok(())
}
