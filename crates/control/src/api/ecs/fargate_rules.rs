//! What Fargate demands of a task definition beyond what ECS does. A definition that names FARGATE in
//! `requiresCompatibilities` must keep these rules to be registered; another one that breaks them is
//! registered, and cannot be run here.
//!
//! Sources: "Amazon ECS task definition parameters for Fargate" and "Amazon ECS task definition differences for
//! Fargate" in the ECS developer guide.
//!
//! What Fargate refuses and Coracle allows is left out on purpose and listed in
//! `docs/differences.md`: any capability in `linuxParameters`, `tmpfs`, `sharedMemorySize`,
//! `extraHosts`, every ulimit, a `stopTimeout` above 120 s, ephemeral storage of other sizes than 21
//! to 200 GiB; and in microVMs what `isolation` lists.

use aws_api::Error;
use aws_api::ecs::{ContainerDefinition, TaskDefinition, Volume};
use model::spec::Isolation;

use super::errors::client;
use super::{fargate_size, isolation, log_options};

/// Checks a document for tasks with this isolation.
pub(super) fn check(definition: &TaskDefinition, isolation: Isolation) -> Result<(), Error> {
    if definition.network_mode.as_deref() != Some("awsvpc") {
        return Err(client("Fargate only supports network mode ‘awsvpc’."));
    }
    check_size(definition)?;
    if let Some(mode) = definition.pid_mode.as_deref().filter(|mode| *mode != "task") {
        return Err(client(format!(
            "Tasks using the Fargate launch type do not support pidMode '{mode}'. The supported value for pidMode is \
             'task'."
        )));
    }
    if let Some(mode) = definition.ipc_mode.as_deref() {
        return Err(client(format!("Tasks using the Fargate launch type do not support ipcMode '{mode}'.")));
    }
    if definition.placement_constraints.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(unsupported("placementConstraints"));
    }
    for volume in definition.volumes.as_deref().unwrap_or_default() {
        check_volume(volume)?;
    }
    for container in definition.container_definitions.as_deref().unwrap_or_default() {
        check_container(definition, container, isolation)?;
    }
    Ok(())
}

fn unsupported(what: &str) -> Error {
    client(format!("Fargate compatible task definitions do not support {what}"))
}

fn check_size(definition: &TaskDefinition) -> Result<(), Error> {
    let Some(cpu) = definition.cpu.as_deref() else {
        return Err(client("Fargate requires that 'cpu' be defined at the task level."));
    };
    let Some(memory) = definition.memory.as_deref() else {
        return Err(client("Fargate requires that 'memory' be defined at the task level."));
    };
    fargate_size::check(fargate_size::parse_cpu(cpu)?, fargate_size::parse_memory(memory)?)
}

fn check_volume(volume: &Volume) -> Result<(), Error> {
    let source = volume.host.as_ref().and_then(|host| host.source_path.as_deref());
    if source.is_some_and(|path| !path.is_empty()) {
        return Err(unsupported("sourcePath"));
    }
    if volume.docker_volume_configuration.is_some() {
        return Err(unsupported("dockerVolumeConfiguration"));
    }
    Ok(())
}

fn check_container(
    definition: &TaskDefinition,
    container: &ContainerDefinition,
    isolation: Isolation,
) -> Result<(), Error> {
    isolation::check(container, isolation)?;
    if container.docker_security_options.as_ref().is_some_and(|o| !o.is_empty()) {
        return Err(unsupported("dockerSecurityOptions"));
    }
    if container.credential_specs.as_ref().is_some_and(|s| !s.is_empty()) {
        return Err(unsupported("credentialSpecs"));
    }
    if let Some(linux) = &container.linux_parameters {
        if linux.max_swap.is_some() {
            return Err(unsupported("maxSwap"));
        }
        if linux.swappiness.is_some() {
            return Err(unsupported("swappiness"));
        }
    }
    let gpu = |r: &aws_api::ecs::ResourceRequirement| r.r#type == "GPU";
    if container.resource_requirements.as_deref().unwrap_or_default().iter().any(gpu) {
        return Err(client("Tasks using the Fargate launch type do not support GPU resource requirements."));
    }
    check_role(definition, container)
}

/// The rules about the role that Fargate needs to pull images and to write logs. Coracle needs none; a
/// definition that it takes shall be one that Fargate takes.
fn check_role(definition: &TaskDefinition, container: &ContainerDefinition) -> Result<(), Error> {
    let role = definition.execution_role_arn.as_deref().is_some_and(|role| !role.is_empty());
    if let Some(log) = &container.log_configuration {
        let driver = log.log_driver.as_str();
        if !matches!(driver, "awslogs" | "splunk" | "awsfirelens") {
            return Err(client(format!(
                "{driver} is not a valid log driver. Must be one of [awslogs, splunk, awsfirelens]"
            )));
        }
        if driver == "awslogs" {
            let options = log_options::LogOptions::parse(&log.options.clone().unwrap_or_default())?;
            if options.stream_prefix.is_none() {
                return Err(client(
                    "Fargate requires log configuration options to include awslogs-stream-prefix to support log driver \
                     awslogs.",
                ));
            }
            if !role {
                return Err(client(
                    "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
                ));
            }
        }
    }
    if container.repository_credentials.is_some() && !role {
        return Err(client(
            "When you are specifying repository credentials, you must also specify a value for 'executionRoleArn'.",
        ));
    }
    if is_ecr_image(container.image.as_deref().unwrap_or_default()) && !role {
        return Err(client(
            "Fargate requires task definition to have execution role ARN to support ECR images.",
        ));
    }
    Ok(())
}

/// Whether the image is in a private registry of Amazon ECR:
/// `ACCOUNT.dkr.ecr.REGION.amazonaws.com/…`.
pub(super) fn is_ecr_image(image: &str) -> bool {
    image
        .split_once('/')
        .is_some_and(|(host, _)| host.contains(".dkr.ecr.") && host.ends_with(".amazonaws.com"))
}
