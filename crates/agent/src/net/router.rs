//! A VPC's router on this host: a network namespace with a link to the host and one to each task.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use model::VpcId;
use model::network::{Cidr, Mac};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::error::NetError;
use super::firewall;
use super::names;
use super::netlink::{Link, Netlink, Request};
use super::netns;
use super::nft_set::{Change, SetSocket};
use super::task_link::TaskLink;
use crate::instance::{Instance, short_hash};

/// The MAC of the router's end of every task link. One for all: each link is a segment of its own.
pub const ROUTER_MAC: Mac = Mac([0x02, 0xc0, 0xff, 0xff, 0xff, 0x01]);
const UPLINK_ROUTER_MAC: Mac = Mac([0x02, 0xc0, 0xff, 0xff, 0xff, 0x02]);
const UPLINK_HOST_MAC: Mac = Mac([0x02, 0xc0, 0xff, 0xff, 0xff, 0x03]);

/// A set-up router. Its namespace lives on without this process.
#[derive(Debug)]
pub struct Router {
    pub(super) vpc: VpcId,
    pub(super) cidr: Cidr,
    /// Base + 1.
    pub(super) gateway: Ipv4Addr,
    /// Base + 2.
    pub(super) resolver: Ipv4Addr,
    pub(super) host_link: String,
    pub(super) mtu: u32,
    pub(super) netlink: Netlink,
    sets: SetSocket,
    netns: File,
}

impl Router {
    /// Makes the router, or takes over the one that an earlier process left. Blocks for some 20 ms
    /// (two runs of `nft`).
    pub(super) fn ensure(
        instance: &Instance,
        vpc: &VpcId,
        cidr: Cidr,
        host: &Netlink,
    ) -> Result<Self, NetError> {
        let too_small = || NetError::CidrTooSmall(cidr);
        if cidr.prefix_len > 28 {
            return Err(too_small());
        }
        let gateway = cidr.nth(1).ok_or_else(too_small)?;
        let resolver = cidr.nth(2).ok_or_else(too_small)?;
        let host_link = names::host_link(instance, vpc);
        check_free(host, cidr, &host_link)?;

        let name = names::router_netns(instance, vpc);
        let (netns, _) =
            netns::open_or_create(&name).map_err(NetError::io(format!("make namespace {name}")))?;
        // Rules come before links: nothing is ever reachable without them.
        let rules = firewall::router_rules(resolver);
        netns::run_in(netns.as_fd(), || Ok(set_sysctls().map(|()| firewall::apply(&rules))))
            .and_then(|result| result)
            .map_err(NetError::io(format!("set up namespace {name}")))??;
        let netlink =
            Netlink::open_in(netns.as_fd()).map_err(NetError::io(format!("open netlink in {name}")))?;
        let sets =
            SetSocket::open_in(netns.as_fd()).map_err(NetError::io(format!("open nfnetlink in {name}")))?;
        let mtu = outside_mtu(host)?;
        let router = Self { vpc: vpc.clone(), cidr, gateway, resolver, host_link, mtu, netlink, sets, netns };
        router.connect_to_host(instance, host)?;
        Ok(router)
    }

    /// The router's network namespace.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    fn connect_to_host(&self, instance: &Instance, host: &Netlink) -> Result<(), NetError> {
        let vanished = |name: &str| NetError::LinkVanished(name.to_owned());
        let near = host.link(&self.host_link)?;
        let far = self.netlink.link(names::UPLINK)?;
        let complete = near.is_some() && far.is_some();
        if !complete {
            // One end without the other is from a namespace that was made anew, or being deleted.
            if let Some(link) = near {
                host.batch(vec![Request::delete_link(link.index)])?;
            }
            if let Some(link) = far {
                self.netlink.batch(vec![Request::delete_link(link.index)])?;
            }
            host.batch(vec![Request::add_veth(
                &self.host_link,
                UPLINK_HOST_MAC,
                names::UPLINK,
                UPLINK_ROUTER_MAC,
                Some(self.netns()),
                self.mtu,
            )])?;
        }
        let near = host.link(&self.host_link)?.ok_or_else(|| vanished(&self.host_link))?;
        let far = self.netlink.link(names::UPLINK)?.ok_or_else(|| vanished(names::UPLINK))?;
        let lo = self.netlink.link("lo")?.ok_or_else(|| vanished("lo"))?;

        let addresses = host.addresses()?;
        let seed = format!("{instance} {}", self.vpc);
        let host_address = link_address(&near, &addresses)
            .or_else(|| choose_link_address(&seed, &addresses))
            .ok_or(NetError::NoFreeCidr)?;
        let router_address = Ipv4Addr::from_bits(host_address.to_bits() | 1);

        let mut requests = vec![
            Request::set_link_up(lo.index, None, None, None),
            Request::add_address(lo.index, self.gateway, 32),
            Request::add_address(lo.index, self.resolver, 32),
            Request::set_link_up(far.index, None, Some(self.mtu), None),
            Request::add_address(far.index, router_address, 31),
            Request::set_neighbour(far.index, host_address, UPLINK_HOST_MAC),
            Request::set_gateway_route(ALL, host_address, far.index, None),
            // An address without a task is answered here, not sent round by the host.
            Request::set_unreachable_route(self.cidr),
        ];
        self.netlink.batch(std::mem::take(&mut requests))?;
        let alias = format!("coracle {instance} {} {}", self.vpc, self.cidr);
        host.batch(vec![
            Request::set_link_up(near.index, None, Some(self.mtu), Some(&alias)),
            Request::add_address(near.index, host_address, 31),
            Request::set_neighbour(near.index, router_address, UPLINK_ROUTER_MAC),
            Request::set_gateway_route(self.cidr, router_address, near.index, Some(host_address)),
        ])?;
        Ok(())
    }

    /// Routes a task's address to its link and lets that link send from it, and only from it.
    pub(super) fn admit(&self, link: &TaskLink, index: u32) -> Result<(), NetError> {
        self.netlink.batch(vec![
            Request::set_neighbour(index, link.address, link.mac),
            Request::set_link_route(host_block(link.address), index, self.gateway),
        ])?;
        self.change_sources(&Change::Add(&[link.source_key()]))
    }

    /// Forgets what `admit` allowed; a link that was never admitted is fine.
    pub(super) fn expel(&self, link: &TaskLink) -> Result<(), NetError> {
        match self.change_sources(&Change::Delete(&[link.source_key()])) {
            Err(NetError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Makes these the only allowed sources.
    pub(super) fn admit_only(&self, links: &[TaskLink]) -> Result<(), NetError> {
        let keys: Vec<_> = links.iter().map(TaskLink::source_key).collect();
        self.change_sources(&Change::Replace(&keys))
    }

    fn change_sources(&self, change: &Change<'_>) -> Result<(), NetError> {
        self.sets
            .change(firewall::ROUTER_TABLE, "task_sources", change)
            .map_err(NetError::io("change the set of task addresses"))
    }

    /// The links to tasks.
    pub(super) fn task_links(&self) -> Result<Vec<Link>, NetError> {
        let mut links = self.netlink.links()?;
        links.retain(|link| link.name.starts_with(names::TASK_LINK_PREFIX));
        Ok(links)
    }
}

/// 0.0.0.0/0.
pub(super) const ALL: Cidr = Cidr { base: Ipv4Addr::UNSPECIFIED, prefix_len: 0 };

pub(super) fn host_block(address: Ipv4Addr) -> Cidr {
    Cidr { base: address, prefix_len: 32 }
}

/// Settings of a router's namespace. Called inside it.
fn set_sysctls() -> std::io::Result<()> {
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        // Strict: what comes from a link must be routed back through it (RFC 3704, 2.2).
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/accept_source_route", "0"),
        ("ipv4/conf/default/accept_source_route", "0"),
        ("ipv4/conf/all/route_localnet", "0"),
        ("ipv4/conf/default/route_localnet", "0"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        write_sysctl(key, value)?;
    }
    Ok(())
}

/// Writes `/proc/sys/net/<key>` of the calling thread's namespace. A kernel without IPv6 is fine.
pub(super) fn write_sysctl(key: &str, value: &str) -> std::io::Result<()> {
    match std::fs::write(Path::new("/proc/sys/net").join(key), value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && key.starts_with("ipv6/") => Ok(()),
        other => other,
    }
}

/// Fails when the host already routes part of `cidr` elsewhere than to `own_link`.
fn check_free(host: &Netlink, cidr: Cidr, own_link: &str) -> Result<(), NetError> {
    let own = host.link(own_link)?.map(|link| link.index);
    match overlapping_route(&host.routes()?, cidr, own) {
        Some(existing) => Err(NetError::CidrInUse { cidr, existing: existing.to_string() }),
        None => Ok(()),
    }
}

/// The destination of a route that overlaps `cidr`, other than default routes and those to `own`.
pub(super) fn overlapping_route(routes: &[RouteMessage], cidr: Cidr, own: Option<u32>) -> Option<Cidr> {
    routes.iter().filter(|route| own.is_none() || output_link(route) != own).find_map(|route| {
        let base = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(base)) => Some(*base),
            _ => None,
        })?;
        let block = Cidr { base, prefix_len: route.header.destination_prefix_length };
        (block.prefix_len > 0 && block.overlaps(cidr)).then_some(block)
    })
}

fn output_link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// The MTU that fits all interfaces with a default route: tasks that send larger packets would
/// depend on path MTU discovery, which firewalls often break. 1500 without a default route.
fn outside_mtu(host: &Netlink) -> Result<u32, NetError> {
    let outside: Vec<u32> = host
        .routes()?
        .iter()
        .filter(|route| route.header.destination_prefix_length == 0)
        .filter_map(output_link)
        .collect();
    let links = host.links()?;
    let smallest =
        links.iter().filter(|link| outside.contains(&link.index)).filter_map(|link| link.mtu).min();
    // 9001 is EC2's jumbo frame; below 576 IPv4 cannot work (RFC 791).
    Ok(smallest.unwrap_or(1500).clamp(576, 9001))
}

/// The even address that the host's end has already.
fn link_address(link: &Link, addresses: &[(u32, Ipv4Addr, u8)]) -> Option<Ipv4Addr> {
    addresses
        .iter()
        .find(|(index, address, _)| *index == link.index && address.is_link_local())
        .map(|(_, address, _)| *address)
}

/// The even address of a /31 from 169.254.16.0 to 169.254.127.255 (no cloud's services are there)
/// that the host does not have yet, always tried in the same order for the same seed.
fn choose_link_address(seed: &str, addresses: &[(u32, Ipv4Addr, u8)]) -> Option<Ipv4Addr> {
    const BASE: u32 = 0xa9fe_1000;
    const PAIRS: u32 = 112 * 128;
    let start = u32::from_str_radix(&short_hash(seed.as_bytes(), 8), 16).unwrap_or(0) % PAIRS;
    (0..PAIRS).map(|step| Ipv4Addr::from_bits(BASE + (start + step) % PAIRS * 2)).find(|candidate| {
        addresses.iter().all(|(_, address, length)| {
            let block = Cidr {
                base: Ipv4Addr::from_bits(
                    address.to_bits() & u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0),
                ),
                prefix_len: *length,
            };
            !block.contains(*candidate)
        })
    })
}
