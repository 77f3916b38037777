//! What ECS demands of every task definition, and what Coracle does not serve yet. What Fargate demands
//! beyond is in `fargate_rules`.
//!
//! Sources: RegisterTaskDefinition in the API reference, "Amazon ECS task definition parameters for Fargate" in
//! the developer guide; messages as the service words them where they are known.

use std::collections::HashSet;

use aws_api::Error;
use aws_api::ecs::{ContainerDefinition, TaskDefinition, Volume};

use super::errors::client;
use super::identifier::is_name;
use super::{fargate_size, validate_container};

const MAX_CONTAINERS: usize = 10;
/// What an ext4 file on the host can hold, in GiB.
const MAX_STORAGE: i32 = 16 * 1024;

/// Checks a document whose defaults are filled in.
pub(super) fn check(definition: &TaskDefinition) -> Result<(), Error> {
    let family = definition.family.as_deref().unwrap_or_default();
    if family.is_empty() {
        return Err(client("Family can not be blank."));
    }
    if !is_name(family) {
        return Err(client("Family contains invalid characters."));
    }
    let containers = definition.container_definitions.as_deref().unwrap_or_default();
    let volumes = definition.volumes.as_deref().unwrap_or_default();
    check_not_served(definition)?;
    check_storage(definition)?;
    check_roles(definition)?;
    check_volumes(volumes)?;
    check_containers(definition, containers, volumes)?;
    check_resources(definition, containers)?;
    check_ports(containers)?;
    check_dependencies(containers)?;
    check_volumes_from(containers)
}

fn check_not_served(definition: &TaskDefinition) -> Result<(), Error> {
    let not_served = |what: &str| Err(client(format!("Coracle does not serve {what} yet.")));
    if definition.proxy_configuration.is_some() {
        return not_served("proxyConfiguration (AWS App Mesh)");
    }
    if definition.inference_accelerators.is_some() {
        return Err(client("inferenceAccelerators are not supported: Amazon Elastic Inference has ended."));
    }
    if definition.enable_fault_injection == Some(true) {
        return not_served("fault injection");
    }
    let platform = definition.runtime_platform.as_ref();
    if let Some(system) =
        platform.and_then(|p| p.operating_system_family.as_deref()).filter(|s| *s != "LINUX")
    {
        return Err(client(format!(
            "Coracle runs Linux containers only; operatingSystemFamily {system} is not served."
        )));
    }
    Ok(())
}

pub(super) fn check_storage(definition: &TaskDefinition) -> Result<(), Error> {
    match &definition.ephemeral_storage {
        Some(storage) if !(1..=MAX_STORAGE).contains(&storage.size_in_gib) => {
            Err(client(format!("The ephemeral storage size must be between 1 and {MAX_STORAGE} GiB.")))
        }
        _ => Ok(()),
    }
}

fn check_roles(definition: &TaskDefinition) -> Result<(), Error> {
    for role in [&definition.task_role_arn, &definition.execution_role_arn].into_iter().flatten() {
        if !is_role(role) {
            return Err(client("Role is not valid"));
        }
    }
    Ok(())
}

/// Whether it is a role's name or ARN.
pub(super) fn is_role(role: &str) -> bool {
    let characters = |text: &str, more: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) || more.contains(c))
    };
    match role.strip_prefix("arn:aws:iam::") {
        Some(rest) => rest.split_once(":role/").is_some_and(|(account, path)| {
            account.len() == 12
                && account.bytes().all(|b| b.is_ascii_digit())
                && path.len() <= 576
                && characters(path, "/")
        }),
        None => role.len() <= 64 && characters(role, ""),
    }
}

fn check_volumes(volumes: &[Volume]) -> Result<(), Error> {
    let mut names = HashSet::new();
    for volume in volumes {
        let name = volume.name.as_deref().unwrap_or_default();
        if !is_name(name) {
            return Err(client("Volume.name must have 1 to 255 letters, numbers, hyphens and underscores."));
        }
        if !names.insert(name) {
            return Err(client(format!("Volume names must be unique within a task definition: '{name}'.")));
        }
        let not_served = |what: &str| {
            Err(client(format!(
                "Coracle does not serve {what} yet; volume '{name}' can only be a plain volume."
            )))
        };
        if volume.efs_volume_configuration.is_some() {
            return not_served("Amazon EFS volumes");
        }
        if volume.s3files_volume_configuration.is_some() {
            return not_served("Amazon S3 Files volumes");
        }
        if volume.fsx_windows_file_server_volume_configuration.is_some() {
            return not_served("Amazon FSx volumes");
        }
        if volume.configured_at_launch == Some(true) {
            return not_served("volumes configured at launch (Amazon EBS)");
        }
    }
    Ok(())
}

fn check_containers(
    definition: &TaskDefinition,
    containers: &[ContainerDefinition],
    volumes: &[Volume],
) -> Result<(), Error> {
    if containers.is_empty() {
        return Err(client("Container list cannot be empty."));
    }
    if containers.len() > MAX_CONTAINERS {
        return Err(client("Too many containers."));
    }
    let mut names = HashSet::new();
    for container in containers {
        validate_container::check(definition, container, volumes)?;
        if !names.insert(container.name.as_deref().unwrap_or_default()) {
            return Err(client("Container names must be unique within a task definition."));
        }
    }
    if !containers.iter().any(|c| c.essential == Some(true)) {
        return Err(client("Task definition doesn't have any essential container."));
    }
    Ok(())
}

/// The containers' shares of the task's CPU and memory.
pub(super) fn check_resources(
    definition: &TaskDefinition,
    containers: &[ContainerDefinition],
) -> Result<(), Error> {
    if let Some(cpu) = definition.cpu.as_deref() {
        let task = i64::from(fargate_size::parse_cpu(cpu)?);
        let sum: i64 = containers.iter().map(|c| i64::from(c.cpu.unwrap_or(0))).sum();
        if sum > task {
            return Err(client(
                "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
            ));
        }
    }
    let Some(memory) = definition.memory.as_deref() else { return Ok(()) };
    let task = i64::from(fargate_size::parse_memory(memory)?);
    let mut reserved = 0;
    for container in containers {
        let name = container.name.as_deref().unwrap_or_default();
        for (setting, value) in
            [("memory", container.memory), ("memoryReservation", container.memory_reservation)]
        {
            if value.is_some_and(|value| i64::from(value) > task) {
                return Err(client(format!(
                    "The '{setting}' setting for container '{name}' is greater than for the task."
                )));
            }
        }
        reserved += i64::from(container.memory_reservation.or(container.memory).unwrap_or(0));
    }
    if reserved > task {
        return Err(client(
            "The sum of the memory that all containers reserve cannot be greater than the value of the task 'memory'.",
        ));
    }
    Ok(())
}

/// All containers of a task share one network interface, so a port can be used once.
fn check_ports(containers: &[ContainerDefinition]) -> Result<(), Error> {
    let (mut ports, mut names) = (HashSet::new(), HashSet::new());
    for container in containers {
        for mapping in container.port_mappings.as_deref().unwrap_or_default() {
            let protocol = mapping.protocol.as_deref().unwrap_or("tcp");
            let (first, last) = validate_container::port_range(mapping)?;
            for port in first..=last {
                if !ports.insert((port, protocol)) {
                    return Err(client(format!("The container port {port} is used multiple times in task.")));
                }
            }
            if let Some(name) = mapping.name.as_deref()
                && !names.insert(name)
            {
                return Err(client(format!("The port mapping name '{name}' is already used.")));
            }
        }
    }
    if ports.len() > validate_container::MAX_PORTS {
        return Err(client(format!(
            "The port mappings of a task can name at most {} ports.",
            validate_container::MAX_PORTS
        )));
    }
    Ok(())
}

fn check_dependencies(containers: &[ContainerDefinition]) -> Result<(), Error> {
    for container in containers {
        for dependency in container.depends_on.as_deref().unwrap_or_default() {
            let on = dependency.container_name.as_str();
            let Some(target) = containers.iter().find(|c| c.name.as_deref() == Some(on)) else {
                return Err(client(format!("Cannot depend on container + '{on}' because it does not exist")));
            };
            match dependency.condition.as_str() {
                "START" => {}
                "COMPLETE" | "SUCCESS" if target.essential == Some(true) => {
                    return Err(client(
                        "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
                    ));
                }
                "COMPLETE" | "SUCCESS" => {}
                "HEALTHY" => {
                    let checked = target
                        .health_check
                        .as_ref()
                        .is_some_and(|h| h.command.first().is_some_and(|c| c != "NONE"));
                    if !checked {
                        return Err(client(
                            "A dependency container with HEALTHY condition must have health check configured",
                        ));
                    }
                }
                other => {
                    return Err(client(format!(
                        "condition should be one of [START,COMPLETE,SUCCESS,HEALTHY], and not '{other}'"
                    )));
                }
            }
        }
    }
    let dependencies = |container: &ContainerDefinition| {
        let list = container.depends_on.as_deref().unwrap_or_default();
        list.iter().map(|dependency| dependency.container_name.clone()).collect()
    };
    match cycle(containers, dependencies) {
        Some(name) => Err(client(format!("There is a cycle in the dependencies of container '{name}'"))),
        None => Ok(()),
    }
}

fn check_volumes_from(containers: &[ContainerDefinition]) -> Result<(), Error> {
    for from in containers.iter().flat_map(|c| c.volumes_from.as_deref().unwrap_or_default()) {
        let source = from.source_container.as_deref().unwrap_or_default();
        if !containers.iter().any(|c| c.name.as_deref() == Some(source)) {
            return Err(client(format!("Invalid 'volumesFrom' setting. Unknown container: '{source}'")));
        }
    }
    let sources = |container: &ContainerDefinition| {
        let list = container.volumes_from.as_deref().unwrap_or_default();
        list.iter().filter_map(|from| from.source_container.clone()).collect()
    };
    match cycle(containers, sources) {
        Some(name) => {
            Err(client(format!("Invalid 'volumesFrom' setting. There is a cycle at container '{name}'")))
        }
        None => Ok(()),
    }
}

/// The name of a container that `edges` lead back to, if there is one. At most ten containers, so
/// removing those without open edges until none is left is quick enough.
fn cycle(
    containers: &[ContainerDefinition],
    edges: impl Fn(&ContainerDefinition) -> Vec<String>,
) -> Option<String> {
    let mut open: Vec<(&str, Vec<String>)> =
        containers.iter().map(|c| (c.name.as_deref().unwrap_or_default(), edges(c))).collect();
    loop {
        let names: HashSet<&str> = open.iter().map(|(name, _)| *name).collect();
        let before = open.len();
        open.retain(|(_, edges)| edges.iter().any(|edge| names.contains(edge.as_str())));
        if open.len() == before {
            return open.first().map(|(name, _)| (*name).to_owned());
        }
    }
}
