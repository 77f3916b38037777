//! What exists before anybody asks for it: the default VPC's subnet and security group, as a new AWS
//! account has them.

use std::net::Ipv4Addr;

use model::network::{Cidr, Subnet};
use model::{Region, SecurityGroupId, SubnetId, VpcId};
use serde::{Deserialize, Serialize};
use store::{CommitError, Store, Txn};

use crate::keys;

const KEY: &str = "vpc/default";

/// AWS's default VPC has this block.
/// Source: "Default VPC components" in the VPC user guide.
pub const PREFERRED_CIDR: Cidr = Cidr { base: Ipv4Addr::new(172, 31, 0, 0), prefix_len: 16 };

/// The network that exists from first start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultNetwork {
    pub subnet: Subnet,
    pub security_group: SecurityGroupId,
}

/// Why first start failed.
#[derive(Debug, thiserror::Error)]
pub enum FirstStartError {
    #[error("the state cannot be read")]
    Read(#[from] store::Error),
    #[error("the first records cannot be stored")]
    Commit(#[from] CommitError),
    #[error("{0:?} is no identifier")]
    Id(#[from] model::id::InvalidId),
}

/// The default network, if first start has been.
///
/// # Errors
/// The state cannot be read.
pub async fn default_network(store: &Store) -> Result<Option<DefaultNetwork>, store::Error> {
    Ok(store.get_json(KEY).await?.map(|found| found.value))
}

/// Makes the default network within `cidr`.
///
/// # Errors
/// It cannot be stored.
pub async fn create(store: &Store, region: &Region, cidr: Cidr) -> Result<DefaultNetwork, FirstStartError> {
    let id = |prefix: &str| format!("{prefix}-{:017x}", rand::random::<u128>() & ((1 << 68) - 1));
    let vpc = VpcId::parse(id("vpc"))?;
    let subnet = Subnet {
        id: SubnetId::parse(id("subnet"))?,
        vpc,
        vpc_cidr: cidr,
        // One zone per host, and a /20 of the VPC's block for each zone, as AWS does it.
        cidr: Cidr { base: cidr.base, prefix_len: cidr.prefix_len.max(20) },
        availability_zone: format!("{region}a"),
    };
    let network = DefaultNetwork { subnet, security_group: SecurityGroupId::parse(id("sg"))? };
    let subnet_key = format!("{}{}", keys::SUBNETS, network.subnet.id);
    let txn = Txn::new().expect_absent(KEY).put_json(KEY, &network).put_json(subnet_key, &network.subnet);
    store.commit(txn).await?;
    Ok(network)
}
