//! A task definition's document: the request with defaults filled in, checked, in the wire's form.
//!
//! Defaults are those that DescribeTaskDefinition shows on AWS.

use aws_api::Error;
use aws_api::ecs::{
    ContainerDefinition, HealthCheck, HostVolumeProperties, RegisterTaskDefinitionRequest, TaskDefinition,
    Volume,
};
use model::spec::Isolation;

use super::errors::{client, corrupt};
use super::{fargate_rules, fargate_size, requires_attributes, validate_definition};

/// The largest task definition, in bytes ("Amazon ECS service quotas").
const MAX_BYTES: usize = 64 * 1024;

/// The document of a request, without what registering adds (ARN, revision, status, times).
/// `isolation` is that of its tasks, unless they say otherwise.
///
/// # Errors
/// ClientException for the first rule that the request breaks.
pub(super) fn from_request(
    request: RegisterTaskDefinitionRequest,
    isolation: Isolation,
) -> Result<TaskDefinition, Error> {
    let bytes = serde_json::to_vec(&request).map_err(|e| corrupt("task definition", &e))?.len();
    if bytes > MAX_BYTES {
        return Err(client(format!("Actual length: '{bytes}'. Max allowed length is '{MAX_BYTES}' bytes.")));
    }
    let cpu = request.cpu.as_deref().filter(|t| !t.is_empty()).map(fargate_size::parse_cpu).transpose()?;
    let memory =
        request.memory.as_deref().filter(|t| !t.is_empty()).map(fargate_size::parse_memory).transpose()?;
    let network_mode = request.network_mode;
    let awsvpc = network_mode.as_deref() == Some("awsvpc");
    let given = |text: Option<String>| text.filter(|t| !t.is_empty());
    let mut definition = TaskDefinition {
        family: Some(request.family),
        container_definitions: Some(
            request.container_definitions.into_iter().map(|c| container_with_defaults(c, awsvpc)).collect(),
        ),
        task_role_arn: given(request.task_role_arn),
        execution_role_arn: given(request.execution_role_arn),
        network_mode,
        volumes: Some(request.volumes.unwrap_or_default().into_iter().map(volume_with_defaults).collect()),
        placement_constraints: Some(request.placement_constraints.unwrap_or_default()),
        requires_compatibilities: request.requires_compatibilities,
        cpu: cpu.map(|units| units.to_string()),
        memory: memory.map(|mib| mib.to_string()),
        pid_mode: request.pid_mode,
        ipc_mode: request.ipc_mode,
        proxy_configuration: request.proxy_configuration,
        inference_accelerators: request.inference_accelerators.filter(|list| !list.is_empty()),
        ephemeral_storage: request.ephemeral_storage,
        runtime_platform: request.runtime_platform,
        enable_fault_injection: request.enable_fault_injection,
        ..TaskDefinition::default()
    };
    let required = definition.requires_compatibilities.clone().unwrap_or_default();
    validate_definition::check(&definition)?;
    let fargate = fargate_rules::check(&definition, isolation);
    let mut compatibilities = vec!["EC2".to_owned()];
    match fargate {
        Ok(()) => compatibilities.push("FARGATE".to_owned()),
        Err(error) if required.iter().any(|name| name == "FARGATE") => return Err(error),
        Err(_) => {}
    }
    if !awsvpc {
        compatibilities.insert(0, "EXTERNAL".to_owned());
    }
    definition.compatibilities = Some(compatibilities);
    definition.requires_attributes = Some(requires_attributes::of(&definition));
    Ok(definition)
}

fn container_with_defaults(mut container: ContainerDefinition, awsvpc: bool) -> ContainerDefinition {
    container.cpu.get_or_insert(0);
    container.essential.get_or_insert(true);
    container.environment.get_or_insert_default();
    container.mount_points.get_or_insert_default();
    container.volumes_from.get_or_insert_default();
    container.system_controls.get_or_insert_default();
    for port in container.port_mappings.get_or_insert_default() {
        port.protocol.get_or_insert_with(|| "tcp".to_owned());
        if port.container_port_range.is_none() && port.host_port.is_none() {
            port.host_port = if awsvpc { port.container_port } else { Some(0) };
        }
    }
    if let Some(check) = &mut container.health_check {
        health_check_with_defaults(check);
    }
    container
}

/// Source: HealthCheck in the API reference.
fn health_check_with_defaults(check: &mut HealthCheck) {
    check.interval.get_or_insert(30);
    check.timeout.get_or_insert(5);
    check.retries.get_or_insert(3);
}

fn volume_with_defaults(mut volume: Volume) -> Volume {
    let configured = volume.docker_volume_configuration.is_some()
        || volume.efs_volume_configuration.is_some()
        || volume.s3files_volume_configuration.is_some()
        || volume.fsx_windows_file_server_volume_configuration.is_some()
        || volume.configured_at_launch == Some(true);
    if !configured {
        volume.host.get_or_insert_with(HostVolumeProperties::default);
    }
    volume
}

/// Whether the document can run here with this isolation, and if not, why.
pub(super) fn runs_on_fargate(document: &TaskDefinition, isolation: Isolation) -> Result<(), Error> {
    fargate_rules::check(document, isolation)
}
