//! What exists before anybody asks for it: the default VPC's subnet, security group and cluster, as
//! a new AWS account has them.

use std::net::Ipv4Addr;

use model::network::{Cidr, Subnet};
use model::{AccountId, ClusterName, Region, SecurityGroupId, SubnetId, Timestamp, VpcId};
use serde::{Deserialize, Serialize};
use store::{CommitError, Store, Txn};

use crate::api::ecs::default_cluster;
use crate::keys::{self, Scope};

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

/// Makes the default network within `cidr`, and the cluster `default`.
///
/// # Errors
/// They cannot be stored.
pub async fn create(
    store: &Store,
    account: &AccountId,
    region: &Region,
    cidr: Cidr,
    now: Timestamp,
) -> Result<DefaultNetwork, FirstStartError> {
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
    store.commit(with_cluster(txn, account, region, now)?).await?;
    Ok(network)
}

/// Makes the cluster `default`.
///
/// # Errors
/// It cannot be stored.
pub async fn create_cluster(
    store: &Store,
    account: &AccountId,
    region: &Region,
    now: Timestamp,
) -> Result<(), FirstStartError> {
    store.commit(with_cluster(Txn::new(), account, region, now)?).await?;
    Ok(())
}

fn with_cluster(
    txn: Txn,
    account: &AccountId,
    region: &Region,
    now: Timestamp,
) -> Result<Txn, FirstStartError> {
    let name = ClusterName::parse("default")?;
    let scope = Scope { account: account.clone(), region: region.clone() };
    let cluster = default_cluster(name.clone(), now);
    Ok(txn.put_json(scope.cluster(&name), &cluster))
}
