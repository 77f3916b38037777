//! Which address a task's network interface gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::network::{Eni, Mac, Subnet, private_domain};
use model::task::Task;
use model::{EniId, SubnetId};

/// `stoppedReason` of a task whose subnets are full.
pub const NO_ADDRESS: &str = "Unexpected EC2 error while attempting to Create Network Interface: \
     InsufficientFreeAddressesInSubnet: The specified subnet does not have enough free addresses to satisfy the request.";

/// The first four addresses and the last of a subnet are not given out.
/// Source: "Subnet sizing" in the VPC user guide.
const RESERVED_AT_START: u64 = 4;

/// A subnet and the addresses in use. Addresses are handed out round-robin, so that one that was
/// just freed is not reused at once by something else while clients still remember it.
#[derive(Clone, Debug)]
pub struct AddressPool {
    subnet: Subnet,
    used: BTreeSet<Ipv4Addr>,
    next: u64,
}

impl AddressPool {
    #[must_use]
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, used: BTreeSet::new(), next: RESERVED_AT_START }
    }

    #[must_use]
    pub fn subnet(&self) -> &Subnet {
        &self.subnet
    }

    /// Notes that an interface has `address`.
    pub fn take(&mut self, address: Ipv4Addr) {
        self.used.insert(address);
        let offset = u64::from(address.to_bits().saturating_sub(self.subnet.cidr.base.to_bits()));
        self.next = offset + 1;
    }

    /// Notes that `address` is free again.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }

    fn free_from(&self, start: u64, also_used: &BTreeSet<Ipv4Addr>) -> Option<(u64, Ipv4Addr)> {
        let end = self.subnet.cidr.size().saturating_sub(1);
        let start = start.clamp(RESERVED_AT_START, end.max(RESERVED_AT_START));
        (start..end).chain(RESERVED_AT_START..start).find_map(|offset| {
            let address = self.subnet.cidr.nth(offset)?;
            (!self.used.contains(&address) && !also_used.contains(&address)).then_some((offset, address))
        })
    }
}

/// Picks addresses while a plan is made, without changing the pools.
pub(crate) struct Picker<'a> {
    pools: &'a BTreeMap<SubnetId, AddressPool>,
    picked: BTreeMap<SubnetId, (u64, BTreeSet<Ipv4Addr>)>,
}

impl<'a> Picker<'a> {
    pub(crate) fn new(pools: &'a BTreeMap<SubnetId, AddressPool>) -> Self {
        Self { pools, picked: BTreeMap::new() }
    }

    /// An interface in the first of the task's subnets that has a free address.
    pub(crate) fn pick(&mut self, task: &Task, id: EniId) -> Option<Eni> {
        for subnet in &task.network.subnets {
            let Some(pool) = self.pools.get(subnet) else { continue };
            let (next, picked) =
                self.picked.entry(subnet.clone()).or_insert_with(|| (pool.next, BTreeSet::new()));
            let Some((offset, address)) = pool.free_from(*next, picked) else { continue };
            *next = offset + 1;
            picked.insert(address);
            return eni(&pool.subnet, id, address, task);
        }
        None
    }
}

fn eni(subnet: &Subnet, id: EniId, address: Ipv4Addr, task: &Task) -> Option<Eni> {
    let [a, b, c, d] = address.octets();
    Some(Eni {
        id,
        vpc: subnet.vpc.clone(),
        subnet: subnet.id.clone(),
        mac: Mac::of_address(address),
        address,
        prefix_len: subnet.cidr.prefix_len,
        gateway: subnet.cidr.nth(1)?,
        resolver: subnet.vpc_cidr.nth(2)?,
        private_dns_name: format!("ip-{a}-{b}-{c}-{d}.{}", private_domain(&task.region)),
    })
}
