//! Kernel parameters that a container's definition sets (`systemControls`).
//!
//! Some belong to namespaces of the container, and libcontainer sets them; those of the network
//! belong to the task's; the others are the kernel's, and may be set where that is the task's own.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, bail};
use model::spec::ContainerSpec;

/// Whether a parameter belongs to a namespace of each container.
fn is_of_container(name: &str) -> bool {
    name.starts_with("fs.mqueue.")
        || matches!(
            name,
            "kernel.msgmax"
                | "kernel.msgmnb"
                | "kernel.msgmni"
                | "kernel.sem"
                | "kernel.shmall"
                | "kernel.shmmax"
                | "kernel.shmmni"
                | "kernel.shm_rmid_forced"
        )
}

/// The parameters of the container's own namespaces.
///
/// # Errors
/// Where the kernel is the host's, one is not in a namespace of the task.
pub fn of_container(definition: &ContainerSpec, is_microvm: bool) -> Result<HashMap<String, String>> {
    for (name, _) in &definition.sysctls {
        let is_namespaced = is_of_container(name) || name.starts_with("net.");
        if !is_microvm && (!is_namespaced || name.contains('/') || name.contains("..")) {
            bail!("sysctl {name:?} is not in a separate kernel namespace");
        }
    }
    Ok(definition.sysctls.iter().filter(|(name, _)| is_of_container(name)).cloned().collect())
}

/// Sets the others: those of the task's network namespace, which the supervisor shares and
/// libcontainer takes for the host's, and those of a microVM's kernel.
///
/// # Errors
/// There is no such parameter, or the kernel refuses the value.
pub fn set_of_task(definition: &ContainerSpec) -> Result<()> {
    for (name, value) in definition.sysctls.iter().filter(|(name, _)| !is_of_container(name)) {
        fs::write(path(name)?, value).with_context(|| format!("sysctl {name}={value}"))?;
    }
    Ok(())
}

/// The file of a parameter. As in sysctl(8), a name whose first separator is a slash is a path, so
/// that names of interfaces may hold dots.
fn path(name: &str) -> Result<String> {
    let is_path = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let path = if is_path { name.to_owned() } else { name.replace('.', "/") };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        bail!("sysctl {name:?} is no kernel parameter");
    }
    Ok(format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::container;

    #[test]
    fn only_namespaced_kernel_parameters_of_the_hosts_kernel() {
        let mut definition = container().spec;
        for (name, allowed) in [
            ("net.core.somaxconn", true),
            ("kernel.shmmax", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.core_pattern", false),
            ("kernel.shm_next_id", false),
            ("vm.overcommit_memory", false),
            ("net./../kernel/core_pattern", false),
            ("net...kernel.core_pattern", false),
        ] {
            definition.sysctls = vec![(name.to_owned(), "1".to_owned())];
            assert_eq!(of_container(&definition, false).is_ok(), allowed, "{name}");
            assert!(of_container(&definition, true).is_ok());
        }
    }

    #[test]
    fn parameters_stay_below_their_directory() {
        assert_eq!(path("vm.overcommit_memory").unwrap(), "/proc/sys/vm/overcommit_memory");
        assert_eq!(path("net/ipv4/conf/e.1/arp").unwrap(), "/proc/sys/net/ipv4/conf/e.1/arp");
        for wrong in ["", ".", "kernel..x", "/etc/passwd", "net/../../self", "vm.", "net./../kernel/core"] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }
}
