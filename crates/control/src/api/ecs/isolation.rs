//! What isolates a task, and what a definition may ask for only where that is a kernel of its own.
//!
//! Fargate refuses `privileged` and `devices`, and Docker kernel parameters without namespaces, because
//! they would be the host's. In a microVM they are the task's.

use aws_api::Error;
use aws_api::ecs::{ContainerDefinition, Device};
use model::cluster::Tags;
use model::spec::Isolation;

use super::errors::{client, invalid};

/// The tag by which a task, or all tasks of a definition, insist on an isolation.
const TAG: &str = "coracle.isolation";
/// How the refused can be had.
const HINT: &str =
    "Coracle allows it with microVM isolation: give the task definition the tag coracle.isolation=microvm.";

/// What Docker allows as namespaced kernel parameters, besides `net.*` and `fs.mqueue.*`.
const IPC_PARAMETERS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
/// Below `/dev`, what a container has of its own.
const OWN_DEVICES: [&str; 10] =
    ["console", "fd", "init", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"];

/// The isolation that the first of the tag sets names which names one.
///
/// # Errors
/// InvalidParameterException when it is none.
pub(super) fn chosen<'a>(
    tags: impl IntoIterator<Item = &'a Tags>,
    default: Isolation,
) -> Result<Isolation, Error> {
    match tags.into_iter().find_map(|tags| tags.get(TAG)).map(String::as_str) {
        None => Ok(default),
        Some("container") => Ok(Isolation::Container),
        Some("microvm") => Ok(Isolation::Microvm),
        Some(_) => Err(invalid(format!("The tag '{TAG}' must be 'container' or 'microvm'."))),
    }
}

/// Checks a container of a task with this isolation.
///
/// # Errors
/// ClientException, in Fargate's words where it has them.
pub(super) fn check(container: &ContainerDefinition, isolation: Isolation) -> Result<(), Error> {
    let has_own_kernel = isolation == Isolation::Microvm;
    if container.privileged == Some(true) && !has_own_kernel {
        return Err(client(format!("Fargate requires that the 'privileged' setting be 'false'. {HINT}")));
    }
    let linux = container.linux_parameters.as_ref();
    let devices = linux.and_then(|linux| linux.devices.as_deref()).unwrap_or_default();
    if !devices.is_empty() && !has_own_kernel {
        return Err(client(format!("Fargate compatible task definitions do not support devices. {HINT}")));
    }
    devices.iter().try_for_each(check_device)?;
    let parameters = container.system_controls.as_deref().unwrap_or_default();
    let names = parameters.iter().filter_map(|control| control.namespace.as_deref());
    match names.into_iter().find(|name| !has_own_kernel && !is_namespaced(name)) {
        Some(name) => Err(client(format!(
            "Invalid setting for container '{}'. The system control '{name}' is not supported: it is not a \
             namespaced kernel parameter. {HINT}",
            container.name.as_deref().unwrap_or_default()
        ))),
        None => Ok(()),
    }
}

fn is_namespaced(parameter: &str) -> bool {
    parameter.starts_with("net.")
        || parameter.starts_with("fs.mqueue.")
        || IPC_PARAMETERS.contains(&parameter)
}

/// Source: Device in the API reference.
fn check_device(device: &Device) -> Result<(), Error> {
    let given = device.container_path.as_deref().filter(|path| !path.is_empty());
    for path in [Some(device.host_path.as_str()), given].into_iter().flatten() {
        let mut parts = path.strip_prefix("/dev/").unwrap_or_default().split('/');
        let is_own = parts.clone().next().is_some_and(|first| OWN_DEVICES.contains(&first));
        if is_own
            || path.len() > 255
            || path.contains('\0')
            || parts.any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(client(format!("'{path}' is not the path of a device below /dev.")));
        }
    }
    let permissions = device.permissions.as_deref().unwrap_or_default();
    match permissions.iter().find(|one| !matches!(one.as_str(), "read" | "write" | "mknod")) {
        Some(other) => Err(client(format!(
            "'{other}' is not a permission of a device. It should be one of [read,write,mknod]."
        ))),
        None => Ok(()),
    }
}
