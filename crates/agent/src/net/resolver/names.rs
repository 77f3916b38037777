//! Names that the resolver answers itself.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use hickory_proto::rr::rdata::{A, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use model::Region;
use model::network::{Cidr, private_domain};
use rand::seq::SliceRandom;

/// Seconds for which an answer about a private DNS name holds; these never change.
const PRIVATE_NAME_TTL: u32 = 60;

/// An `SRV` target (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub target: String,
}

/// Names of a VPC, such as those of service discovery. All in lower case, without a final dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameTable {
    /// Namespaces that end here: a name in one of them that has no record does not exist. A name
    /// outside them is forwarded unless it has a record.
    pub zones: Vec<String>,
    pub addresses: HashMap<String, Vec<Ipv4Addr>>,
    pub services: HashMap<String, Vec<Service>>,
    /// Seconds.
    pub ttl: u32,
}

/// A handle to the table of a VPC's resolver; what is put in is answered from then on.
#[derive(Debug, Clone, Default)]
pub struct LocalNames(Arc<RwLock<Arc<NameTable>>>);

impl LocalNames {
    /// Replaces the whole table.
    pub fn replace(&self, table: NameTable) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// The table as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<NameTable> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The private DNS names of a VPC's addresses and the names in its table.
#[derive(Debug, Clone)]
pub struct LocalZone {
    cidr: Cidr,
    /// What follows `ip-172-31-0-5`.
    domain: String,
    pub names: LocalNames,
}

/// What is known of a name here.
#[derive(Debug, PartialEq, Eq)]
pub enum LocalAnswer {
    /// The records, none if the name has only others.
    Records(Vec<Record>),
    NoSuchName,
    /// Ask the host's resolvers.
    Elsewhere,
}

impl LocalZone {
    pub fn new(cidr: Cidr, region: &Region, names: LocalNames) -> Self {
        Self { cidr, domain: private_domain(region), names }
    }

    /// Looks a name up. At most `MAX_ANSWERS` records, in random order, as Cloud Map gives them
    /// (its multivalue answer: up to eight).
    pub fn look_up(&self, name: &Name, kind: RecordType) -> LocalAnswer {
        let text = name.to_ascii().to_ascii_lowercase();
        let text = text.trim_end_matches('.');
        if let Some(answer) = self.private_name(name, text, kind) {
            return answer;
        }
        let table = self.names.current();
        let addresses = table.addresses.get(text);
        let services = table.services.get(text);
        if addresses.is_none() && services.is_none() {
            let ours = table.zones.iter().any(|zone| is_in(text, zone));
            return if ours { LocalAnswer::NoSuchName } else { LocalAnswer::Elsewhere };
        }
        let record = |data| Record::from_rdata(name.clone(), table.ttl, data);
        let mut records: Vec<Record> = match kind {
            RecordType::A => {
                addresses.into_iter().flatten().map(|address| record(RData::A(A(*address)))).collect()
            }
            RecordType::SRV => services
                .into_iter()
                .flatten()
                .filter_map(|service| {
                    let mut target = Name::from_ascii(&service.target).ok()?;
                    target.set_fqdn(true);
                    let Service { priority, weight, port, .. } = *service;
                    Some(record(RData::SRV(SRV::new(priority, weight, port, target))))
                })
                .collect(),
            _ => Vec::new(),
        };
        records.shuffle(&mut rand::rng());
        records.truncate(MAX_ANSWERS);
        LocalAnswer::Records(records)
    }

    fn private_name(&self, name: &Name, text: &str, kind: RecordType) -> Option<LocalAnswer> {
        let record = |data| Record::from_rdata(name.clone(), PRIVATE_NAME_TTL, data);
        if let Some(reversed) = text.strip_suffix(".in-addr.arpa") {
            let address = parse_octets(reversed.split('.').rev())?;
            if !self.cidr.contains(address) {
                return None;
            }
            let target = Name::from_ascii(format!("{}.{}.", dashed(address), self.domain)).ok()?;
            let records = match kind {
                RecordType::PTR => vec![record(RData::PTR(PTR(target)))],
                _ => Vec::new(),
            };
            return Some(LocalAnswer::Records(records));
        }
        if !is_in(text, &self.domain) {
            return None;
        }
        let address = text
            .strip_suffix(self.domain.as_str())
            .and_then(|rest| rest.strip_suffix('.')?.strip_prefix("ip-"))
            .and_then(|digits| parse_octets(digits.split('-')))
            .filter(|address| self.cidr.contains(*address));
        Some(match (address, kind) {
            (Some(address), RecordType::A) => LocalAnswer::Records(vec![record(RData::A(A(address)))]),
            (Some(_), _) => LocalAnswer::Records(Vec::new()),
            (None, _) if text == self.domain => LocalAnswer::Records(Vec::new()),
            (None, _) => LocalAnswer::NoSuchName,
        })
    }
}

/// Most records in one answer.
const MAX_ANSWERS: usize = 8;

fn is_in(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn dashed(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

/// Exactly four decimal numbers without leading zeros.
fn parse_octets<'a>(parts: impl Iterator<Item = &'a str>) -> Option<Ipv4Addr> {
    let text = parts.collect::<Vec<_>>().join(".");
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(region: &str) -> LocalZone {
        let names = LocalNames::default();
        LocalZone::new("172.31.0.0/16".parse().unwrap(), &Region::parse(region).unwrap(), names)
    }

    fn look_up(zone: &LocalZone, name: &str, kind: RecordType) -> LocalAnswer {
        zone.look_up(&Name::from_ascii(name).unwrap(), kind)
    }

    fn addresses(answer: LocalAnswer) -> Vec<String> {
        let LocalAnswer::Records(records) = answer else { panic!("{answer:?}") };
        let mut texts: Vec<_> = records.iter().map(|record| record.data.to_string()).collect();
        texts.sort();
        texts
    }

    #[test]
    fn private_names_follow_the_region() {
        let eu = zone("eu-central-1");
        let name = "IP-172-31-0-5.eu-central-1.compute.internal.";
        assert_eq!(addresses(look_up(&eu, name, RecordType::A)), ["172.31.0.5"]);
        assert_eq!(look_up(&eu, name, RecordType::AAAA), LocalAnswer::Records(Vec::new()));
        let us = zone("us-east-1");
        assert_eq!(addresses(look_up(&us, "ip-172-31-0-5.ec2.internal.", RecordType::A)), ["172.31.0.5"]);
        for bad in [
            "ip-10-0-0-1.ec2.internal.",
            "ip-172-31-0.ec2.internal.",
            "ip-172-31-0-05.ec2.internal.",
            "x.ec2.internal.",
        ] {
            assert_eq!(look_up(&us, bad, RecordType::A), LocalAnswer::NoSuchName, "{bad}");
        }
        for elsewhere in
            ["ec2.internal.com.", "xec2.internal.", "5.0.0.10.in-addr.arpa.", "0.31.172.in-addr.arpa."]
        {
            assert_eq!(look_up(&us, elsewhere, RecordType::A), LocalAnswer::Elsewhere, "{elsewhere}");
        }
        let reverse = look_up(&us, "5.0.31.172.in-addr.arpa.", RecordType::PTR);
        assert_eq!(addresses(reverse), ["ip-172-31-0-5.ec2.internal."]);
    }

    #[test]
    fn tables_answer_for_their_zones() {
        let zone = zone("us-east-1");
        let all: Vec<_> = (1..=20).map(|last| Ipv4Addr::new(172, 31, 0, last)).collect();
        let service = Service { priority: 1, weight: 1, port: 80, target: "t1.db.local".into() };
        zone.names.replace(NameTable {
            zones: vec!["local".into()],
            addresses: [("db.local".into(), all[..2].to_vec()), ("many.local".into(), all)].into(),
            services: [("web.local".into(), vec![service])].into(),
            ttl: 10,
        });
        assert_eq!(addresses(look_up(&zone, "DB.local.", RecordType::A)), ["172.31.0.1", "172.31.0.2"]);
        assert_eq!(addresses(look_up(&zone, "many.local.", RecordType::A)).len(), 8);
        assert_eq!(addresses(look_up(&zone, "web.local.", RecordType::SRV)), ["1 1 80 t1.db.local."]);
        assert_eq!(addresses(look_up(&zone, "web.local.", RecordType::A)), Vec::<String>::new());
        assert_eq!(look_up(&zone, "no.local.", RecordType::A), LocalAnswer::NoSuchName);
        assert_eq!(look_up(&zone, "example.com.", RecordType::A), LocalAnswer::Elsewhere);
    }
}
