//! Which capabilities a container's process has, all of them within the task's user namespace.

use std::collections::HashSet;

use model::spec::ContainerSpec;
use oci_spec::runtime::Capability;

/// Fargate's default set, which is Docker's: "linuxParameters" in the ECS developer guide.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// A name that is no capability.
#[derive(Debug, thiserror::Error)]
#[error("invalid capability: {0:?}")]
pub struct UnknownCapability(String);

/// The bounding set: the default, with the definition's additions and without what it drops.
/// As in Docker, a named addition wins over dropping `ALL`.
pub fn bounding_set(spec: &ContainerSpec) -> Result<HashSet<Capability>, UnknownCapability> {
    let linux = &spec.linux;
    if spec.privileged {
        return Ok(every().collect());
    }
    let mut set: HashSet<Capability> = DEFAULT.into_iter().collect();
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    if linux.add_capabilities.iter().any(is_all) {
        set = every().collect();
    }
    if linux.drop_capabilities.iter().any(is_all) {
        set.clear();
    }
    for name in linux.drop_capabilities.iter().filter(|name| !is_all(name)) {
        set.remove(&parse(name)?);
    }
    for name in linux.add_capabilities.iter().filter(|name| !is_all(name)) {
        set.insert(parse(name)?);
    }
    Ok(set)
}

fn every() -> impl Iterator<Item = Capability> {
    caps::all().into_iter().filter_map(|capability| parse(&capability.to_string()).ok())
}

fn parse(name: &str) -> Result<Capability, UnknownCapability> {
    let upper = name.to_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).parse().map_err(|_| UnknownCapability(name.to_owned()))
}

/// `CAP_…`.
pub fn name(capability: Capability) -> String {
    format!("CAP_{capability}")
}

/// The same capabilities in the form that sets them.
pub fn to_caps(set: &HashSet<Capability>) -> caps::CapsHashSet {
    set.iter().filter_map(|capability| name(*capability).parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::container;

    #[test]
    fn additions_and_drops() {
        let mut spec = container().spec;
        assert_eq!(bounding_set(&spec).unwrap().len(), 14);
        assert_eq!(to_caps(&bounding_set(&spec).unwrap()).len(), 14);
        spec.linux.add_capabilities = vec!["SYS_PTRACE".into()];
        spec.linux.drop_capabilities = vec!["NET_RAW".into(), "CAP_MKNOD".into()];
        let set = bounding_set(&spec).unwrap();
        assert!(set.contains(&Capability::SysPtrace) && !set.contains(&Capability::NetRaw));
        assert_eq!(set.len(), 13);
        spec.linux.drop_capabilities = vec!["ALL".into()];
        assert_eq!(bounding_set(&spec).unwrap(), HashSet::from([Capability::SysPtrace]));
        spec.linux.add_capabilities = vec!["ALL".into()];
        spec.linux.drop_capabilities = vec!["SYS_ADMIN".into()];
        let set = bounding_set(&spec).unwrap();
        assert!(set.len() > 35 && !set.contains(&Capability::SysAdmin));
        spec.linux.add_capabilities = vec!["FLY".into()];
        assert!(bounding_set(&spec).is_err());
    }
}
