//! Network identities as the planner gives them out.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::id::{EniId, Region, SubnetId, VpcId};

/// A task's elastic network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    pub id: EniId,
    pub vpc: VpcId,
    pub subnet: SubnetId,
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// Of the subnet.
    pub prefix_len: u8,
    /// The subnet's router: its base address plus one.
    pub gateway: Ipv4Addr,
    /// The VPC's resolver: its base address plus two.
    pub resolver: Ipv4Addr,
    /// `ip-172-31-0-5.eu-central-1.compute.internal`.
    pub private_dns_name: String,
}

/// The domain of private DNS names: `ec2.internal` in us-east-1, `<region>.compute.internal`
/// elsewhere.
/// Source: "Amazon EC2 instance hostnames and domains" in the EC2 user guide.
#[must_use]
pub fn private_domain(region: &Region) -> String {
    match region.as_str() {
        "us-east-1" => "ec2.internal".to_owned(),
        region => format!("{region}.compute.internal"),
    }
}

/// A MAC address; written as `02:ab:…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address that is unique within a VPC, as it is made of the
    /// interface's address there.
    #[must_use]
    pub fn of_address(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0xc0, a, b, c, d])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = crate::id::InvalidId;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        let mut bytes = [0u8; 6];
        let mut parts = value.split(':');
        for byte in &mut bytes {
            let part = parts.next().and_then(|p| u8::from_str_radix(p, 16).ok());
            match part {
                Some(b) => *byte = b,
                None => return Err(Self::Error { kind: "MAC address", value }),
            }
        }
        if parts.next().is_some() {
            return Err(Self::Error { kind: "MAC address", value });
        }
        Ok(Self(bytes))
    }
}

/// An IPv4 block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    pub base: Ipv4Addr,
    pub prefix_len: u8,
}

impl Cidr {
    /// How many addresses the block has.
    #[must_use]
    pub fn size(self) -> u64 {
        1u64 << (32 - u32::from(self.prefix_len.min(32)))
    }

    /// The address `offset` after the base; `None` outside the block.
    #[must_use]
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        (offset < self.size())
            .then(|| u32::try_from(offset).ok().and_then(|o| self.base.to_bits().checked_add(o)))
            .flatten()
            .map(Ipv4Addr::from_bits)
    }

    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let offset = u64::from(address.to_bits()).checked_sub(u64::from(self.base.to_bits()));
        offset.is_some_and(|o| o < self.size())
    }

    /// Whether the blocks share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

/// `172.31.0.0/16`.
impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_len)
    }
}

impl std::str::FromStr for Cidr {
    type Err = crate::id::InvalidId;

    /// Host bits must be zero, as EC2 wants for a VPC's block.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (base, prefix_len) = text.split_once('/')?;
            let base: Ipv4Addr = base.parse().ok()?;
            let prefix_len: u8 = prefix_len.parse().ok().filter(|length| *length <= 32)?;
            let cidr = Self { base, prefix_len };
            (u64::from(base.to_bits()) % cidr.size() == 0).then_some(cidr)
        };
        parse().ok_or_else(|| Self::Err { kind: "CIDR block", value: text.to_owned() })
    }
}

/// A subnet with the block that task addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub id: SubnetId,
    pub vpc: VpcId,
    pub vpc_cidr: Cidr,
    pub cidr: Cidr,
    pub availability_zone: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_count_and_contain() {
        let block = Cidr { base: Ipv4Addr::new(172, 31, 0, 0), prefix_len: 20 };
        assert_eq!(block.size(), 4096);
        assert_eq!(block.nth(2), Some(Ipv4Addr::new(172, 31, 0, 2)));
        assert_eq!(block.nth(4096), None);
        assert!(block.contains(Ipv4Addr::new(172, 31, 15, 255)));
        assert!(!block.contains(Ipv4Addr::new(172, 31, 16, 0)));
    }

    #[test]
    fn blocks_parse_what_they_print_and_overlap() {
        let block: Cidr = "172.31.16.0/20".parse().unwrap();
        assert_eq!(block.to_string(), "172.31.16.0/20");
        for bad in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "::/0", "10/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let vpc: Cidr = "172.31.0.0/16".parse().unwrap();
        assert!(vpc.overlaps(block) && block.overlaps(vpc));
        assert!(!vpc.overlaps("172.30.0.0/16".parse().unwrap()));
        assert!(vpc.overlaps("0.0.0.0/0".parse().unwrap()));
    }

    #[test]
    fn macs_parse_what_they_print() {
        let mac = Mac::of_address(Ipv4Addr::new(172, 31, 0, 5));
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
        assert!(Mac::try_from("02:00".to_owned()).is_err());
        assert!(Mac::try_from("02:00:00:00:00:00:00".to_owned()).is_err());
    }
}
