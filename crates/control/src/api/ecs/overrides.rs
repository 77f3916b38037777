//! A run request's overrides, applied to the task definition's document.

use aws_api::Error;
use aws_api::ecs::{ContainerDefinition, ContainerOverride, KeyValuePair, TaskDefinition, TaskOverride};

use super::errors::{corrupt, invalid};
use super::validate_definition::{check_resources, check_storage, is_role};
use super::{fargate_size, validate_container};

/// The most that overrides may have, in bytes of JSON ("RunTask" in the API reference).
const MAX_BYTES: usize = 8192;

/// The document as the task shall run it.
///
/// # Errors
/// InvalidParameterException when the overrides name a container that is not there, or break a rule of
/// task definitions.
pub(super) fn apply(mut document: TaskDefinition, overrides: &TaskOverride) -> Result<TaskDefinition, Error> {
    let bytes = serde_json::to_vec(overrides).map_err(|e| corrupt("overrides", &e))?.len();
    if bytes > MAX_BYTES {
        return Err(invalid(format!("Container Overrides length must be at most {MAX_BYTES}")));
    }
    if overrides.inference_accelerator_overrides.as_ref().is_some_and(|o| !o.is_empty()) {
        return Err(invalid(
            "inferenceAcceleratorOverrides are not supported: Amazon Elastic Inference has ended.",
        ));
    }
    for (role, own) in [
        (&overrides.task_role_arn, &mut document.task_role_arn),
        (&overrides.execution_role_arn, &mut document.execution_role_arn),
    ] {
        if let Some(role) = role {
            if !is_role(role) {
                return Err(invalid("Role is not valid"));
            }
            *own = Some(role.clone());
        }
    }
    if let Some(cpu) = &overrides.cpu {
        document.cpu = Some(fargate_size::parse_cpu(cpu).map_err(as_parameter)?.to_string());
    }
    if let Some(memory) = &overrides.memory {
        document.memory = Some(fargate_size::parse_memory(memory).map_err(as_parameter)?.to_string());
    }
    if let Some(storage) = &overrides.ephemeral_storage {
        document.ephemeral_storage = Some(storage.clone());
    }
    let mut containers = document.container_definitions.take().unwrap_or_default();
    for one in overrides.container_overrides.as_deref().unwrap_or_default() {
        let name = one.name.as_deref().unwrap_or_default();
        let container = containers.iter_mut().find(|container| container.name.as_deref() == Some(name));
        let container = container.ok_or_else(|| {
            invalid(format!("Override for container named {name} is not a container in the TaskDefinition."))
        })?;
        apply_to_container(container, one)?;
    }
    check_storage(&document).map_err(as_parameter)?;
    if let (Some(cpu), Some(memory)) = (document.cpu.as_deref(), document.memory.as_deref()) {
        let (cpu, memory) = (fargate_size::parse_cpu(cpu)?, fargate_size::parse_memory(memory)?);
        fargate_size::check(cpu, memory).map_err(as_parameter)?;
    }
    check_resources(&document, &containers).map_err(as_parameter)?;
    document.container_definitions = Some(containers);
    Ok(document)
}

fn apply_to_container(container: &mut ContainerDefinition, one: &ContainerOverride) -> Result<(), Error> {
    let name = container.name.clone().unwrap_or_default();
    if one.environment_files.as_ref().is_some_and(|files| !files.is_empty()) {
        return Err(invalid(
            "Coracle does not serve 'environmentFiles' yet: it has no Amazon S3 to read them from.",
        ));
    }
    if one.resource_requirements.as_ref().is_some_and(|requirements| !requirements.is_empty()) {
        return Err(invalid("Tasks using the Fargate launch type do not support resourceRequirements."));
    }
    if let Some(command) = &one.command {
        if command.iter().any(|text| text.contains('\0')) {
            return Err(invalid(format!(
                "The command for container '{name}' must not contain NUL characters."
            )));
        }
        container.command = Some(command.clone());
    }
    if let Some(environment) = &one.environment {
        validate_container::check_environment(&name, environment).map_err(as_parameter)?;
        let mut merged: Vec<KeyValuePair> =
            container.environment.take().map(|e| e.into_inner()).unwrap_or_default();
        for variable in environment.iter() {
            merged.retain(|own| own.name != variable.name);
            merged.push(variable.clone());
        }
        container.environment = Some(merged.into());
    }
    container.cpu = one.cpu.or(container.cpu);
    container.memory = one.memory.or(container.memory);
    container.memory_reservation = one.memory_reservation.or(container.memory_reservation);
    validate_container::check_amounts(&name, container).map_err(as_parameter)
}

/// RunTask says InvalidParameterException where RegisterTaskDefinition says ClientException.
fn as_parameter(error: Error) -> Error {
    invalid(error.message)
}

/// `overrides` as DescribeTasks shows them: with an entry for every container.
pub(super) fn shown(document: &TaskDefinition, overrides: Option<&TaskOverride>) -> TaskOverride {
    let mut shown = overrides.cloned().unwrap_or_default();
    let list = shown.container_overrides.get_or_insert_default();
    for container in document.container_definitions.as_deref().unwrap_or_default() {
        if !list.iter().any(|one| one.name == container.name) {
            list.push(ContainerOverride { name: container.name.clone(), ..ContainerOverride::default() });
        }
    }
    shown.inference_accelerator_overrides.get_or_insert_default();
    shown
}
