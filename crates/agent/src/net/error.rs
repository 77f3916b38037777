//! What can go wrong in the host's network.

use std::io;

use model::VpcId;
use model::network::Cidr;

use super::netlink::NetlinkError;

/// An error of the host's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The block is already used on this host; another one must be configured.
    #[error("the VPC block {cidr} overlaps {existing}, which this host already routes elsewhere")]
    CidrInUse { cidr: Cidr, existing: String },
    /// The block has no room for the router, the resolver and a task.
    #[error("the VPC block {0} is too small: at most a /28 can be used")]
    CidrTooSmall(Cidr),
    /// Neither the preferred block nor any other private one is free.
    #[error("no private IPv4 block is free on this host")]
    NoFreeCidr,
    /// `ensure_vpc` was not called for it.
    #[error("{0} has no router on this host")]
    UnknownVpc(VpcId),
    /// The link was made in the router of another VPC.
    #[error("a link prepared for {prepared} cannot serve an interface in {wanted}")]
    WrongVpc { prepared: VpcId, wanted: VpcId },
    /// The address is not one of the VPC's.
    #[error("{address} is not an address of {cidr}")]
    ForeignAddress { address: std::net::Ipv4Addr, cidr: Cidr },
    /// A kernel object that was just made is gone.
    #[error("the link {0} disappeared while it was being set up")]
    LinkVanished(String),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A system call or file operation.
    #[error("cannot {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    /// `nft` or `iptables` refused; its first line of complaint is included.
    #[error("{program} failed: {complaint}")]
    Firewall { program: &'static str, complaint: String },
}

impl NetError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
