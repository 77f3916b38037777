//! Kernel parameters that a container's definition sets (`systemControls`).
//!
//! Some belong to the IPC namespace of the container; those of the network belong to the task's; the
//! others are the kernel's, and may be set where that is the task's own.

use std::fs::{self, File};
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use model::spec::ContainerSpec;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, Uid, seteuid};

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

/// Refuses what the task may not set.
///
/// # Errors
/// Where the kernel is the host's, one is not in a namespace of the task.
pub fn check(definition: &ContainerSpec, is_microvm: bool) -> Result<()> {
    for (name, _) in &definition.sysctls {
        let is_namespaced = is_of_container(name) || name.starts_with("net.");
        if !is_microvm && (!is_namespaced || name.contains('/') || name.contains("..")) {
            bail!("sysctl {name:?} is not in a separate kernel namespace");
        }
    }
    Ok(())
}

/// Sets those of the IPC namespace of the container whose first process is `pid`, and whose root is the
/// host's user `root`. The runtime would do it as that user, who before Linux 6.9 has no right to; since
/// then nobody else has.
///
/// # Errors
/// There is no such parameter, or the kernel refuses the value.
pub fn set_of_container(definition: &ContainerSpec, pid: Pid, root: u32) -> Result<()> {
    let mut own = definition.sysctls.iter().filter(|(name, _)| is_of_container(name)).peekable();
    if own.peek().is_none() {
        return Ok(());
    }
    let ours = File::open("/proc/self/ns/ipc")?;
    let theirs = File::open(format!("/proc/{pid}/ns/ipc"))?;
    setns(&theirs, CloneFlags::CLONE_NEWIPC).context("enter the container's IPC namespace")?;
    let result = own.try_for_each(|parameter| match set(parameter) {
        Err(error) if is_denied(&error) => as_user(root, || set(parameter)),
        other => other,
    });
    setns(&ours, CloneFlags::CLONE_NEWIPC).context("leave the container's IPC namespace")?;
    result
}

/// Sets the others: those of the task's network namespace, which the supervisor shares, and those of
/// a microVM's kernel.
///
/// # Errors
/// There is no such parameter, or the kernel refuses the value.
pub fn set_of_task(definition: &ContainerSpec) -> Result<()> {
    definition.sysctls.iter().filter(|(name, _)| !is_of_container(name)).try_for_each(set)
}

fn is_denied(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Does something with the rights of another user.
fn as_user(uid: u32, work: impl FnOnce() -> Result<()>) -> Result<()> {
    seteuid(Uid::from_raw(uid)).context("become the container's root")?;
    let result = work();
    seteuid(Uid::from_raw(0)).context("become root again")?;
    result
}

fn set((name, value): &(String, String)) -> Result<()> {
    let written = fs::write(path(name)?, value);
    if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        // An older kernel may have it for the host's network only, as Linux 6.1 has net.core.*.
        bail!("sysctl {name}: this host's kernel has no such parameter for a task");
    }
    written.with_context(|| format!("sysctl {name}={value}"))
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
            assert_eq!(check(&definition, false).is_ok(), allowed, "{name}");
            assert!(check(&definition, true).is_ok());
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
