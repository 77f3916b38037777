//! Names of kernel objects. Interface names have at most 15 bytes (IFNAMSIZ).

use model::VpcId;

use crate::instance::{Instance, short_hash};

/// Begins the name of every host-side link to a router, of any Coracle instance.
pub const HOST_LINK_PREFIX: &str = "crcl-";
/// Begins the name of every link to a task, in a router's namespace.
pub const TASK_LINK_PREFIX: &str = "tk";
/// The router's link to the host, in the router's namespace.
pub const UPLINK: &str = "uplink";
/// A task's interface, in the task's namespace.
pub const TASK_INTERFACE: &str = "eth0";

/// The host's end of the link to a VPC's router: prefix, instance, four digits of the VPC.
pub fn host_link(instance: &Instance, vpc: &VpcId) -> String {
    format!("{HOST_LINK_PREFIX}{instance}{}", short_hash(vpc.as_str().as_bytes(), 4))
}

/// Begins the names of all network namespaces of an instance.
pub fn netns_prefix(instance: &Instance) -> String {
    format!("coracle-{instance}-")
}

/// A VPC router's network namespace.
pub fn router_netns(instance: &Instance, vpc: &VpcId) -> String {
    format!("{}{vpc}", netns_prefix(instance))
}

/// A new name for the router's end of a task link.
pub fn task_link(random: u64) -> String {
    format!("{TASK_LINK_PREFIX}{:013x}", random >> 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit() {
        assert_eq!(task_link(u64::MAX).len(), 15);
        assert_eq!(task_link(0).len(), 15);
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::of(dir.path()).unwrap();
        let vpc = VpcId::try_from("vpc-0123456789abcdef0".to_owned()).unwrap();
        assert_eq!(host_link(&instance, &vpc).len(), 15);
    }
}
