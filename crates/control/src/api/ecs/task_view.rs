//! Tasks as the API shows them: intent, assignment and observation in one. No I/O.
//!
//! Source: Task and Container in the API reference, and what `aws ecs describe-tasks` prints for Fargate.

use aws_api::Error;
use aws_api::ecs::{
    Attachment, Attribute, Container, EphemeralStorage, KeyValuePair, NetworkInterface, Task as WireTask,
    TaskEphemeralStorage,
};
use model::assignment::Decision;
use model::network::{Eni, Subnet};
use model::observation::ContainerObservation;
use model::snapshot::SNAPSHOT_TAG;
use model::spec::ContainerSpec;
use model::status::ContainerStatus;
use model::{Arn, HealthStatus, TaskStatus, Timestamp};

use super::errors::corrupt;
use super::tags;
use super::task_records::TaskRecords;

/// `include_tags`: DescribeTasks shows tags only when asked to.
pub(super) fn view(records: &TaskRecords, subnet: &Subnet, include_tags: bool) -> Result<WireTask, Error> {
    let TaskRecords { task, assignment, observation } = records;
    let spec = &task.spec;
    let times = observation.as_ref().map(|o| o.times).unwrap_or_default();
    let refused_at = records.refused().map(|(_, at)| at);
    let stop = records.stop();
    let overrides =
        serde_json::from_value(task.overrides.clone()).map_err(|e| corrupt("a task's overrides", &e))?;
    let storage = i32::try_from(spec.ephemeral_storage_gib).unwrap_or(i32::MAX);
    let sequence = observation.as_ref().map_or(0, |o| i64::try_from(o.sequence).unwrap_or(i64::MAX - 8));
    Ok(WireTask {
        attachments: Some(vec![attachment(records)]),
        attributes: Some(attributes(records)),
        availability_zone: task
            .network
            .subnets
            .contains(&subnet.id)
            .then(|| subnet.availability_zone.clone()),
        capacity_provider_name: task.capacity_provider.clone(),
        cluster_arn: Some(Arn::cluster(&task.region, &task.account, &task.cluster).to_string()),
        connectivity: times.connected_at.map(|_| "CONNECTED".to_owned()),
        connectivity_at: wire(times.connected_at),
        container_instance_arn: None,
        containers: Some(spec.containers.iter().map(|c| container(records, c)).collect()),
        cpu: Some(spec.cpu_units.to_string()),
        created_at: wire(Some(task.created_at)),
        desired_status: Some(records.desired().as_str().to_owned()),
        enable_execute_command: Some(task.enable_execute_command),
        execution_stopped_at: wire(times.execution_stopped_at),
        group: Some(task.group.clone()),
        health_status: Some(health(records).as_str().to_owned()),
        inference_accelerators: Some(Vec::new()),
        last_status: Some(records.status().as_str().to_owned()),
        // Tasks of the Fargate capacity providers have the launch type, too.
        launch_type: Some("FARGATE".to_owned()),
        memory: Some(spec.memory_mib.to_string()),
        overrides: Some(overrides),
        platform_version: Some(task.platform_version.clone()),
        platform_family: Some("Linux".to_owned()),
        pull_started_at: wire(times.pull_started_at),
        pull_stopped_at: wire(times.pull_stopped_at),
        started_at: wire(times.started_at),
        started_by: task.started_by.clone(),
        stop_code: stop.map(|cause| cause.code.as_str().to_owned()),
        stopped_at: wire(times.stopped_at.or(refused_at)),
        stopped_reason: stop.map(|cause| cause.reason.clone()),
        stopping_at: wire(records.stopping_at()),
        tags: Some(if include_tags { tags::to_wire(&task.tags) } else { Vec::new() }),
        task_arn: Some(task_arn(records)),
        task_definition_arn: Some(
            Arn::task_definition(&task.region, &task.account, &spec.family, spec.revision).to_string(),
        ),
        // Grows with every change of a record.
        version: Some(1 + i64::from(task.stop.is_some()) + i64::from(assignment.is_some()) + sequence),
        ephemeral_storage: Some(EphemeralStorage { size_in_gib: storage }),
        fargate_ephemeral_storage: Some(TaskEphemeralStorage {
            size_in_gib: Some(storage),
            kms_key_id: None,
        }),
    })
}

fn wire(at: Option<Timestamp>) -> Option<aws_api::Timestamp> {
    at.map(|at| aws_api::Timestamp::from_millis(at.millis()))
}

fn task_arn(records: &TaskRecords) -> String {
    let task = &records.task;
    Arn::task(&task.region, &task.account, &task.cluster, &task.id).to_string()
}

fn eni(records: &TaskRecords) -> Option<&Eni> {
    match &records.assignment.as_ref()?.decision {
        Decision::Placed { eni, .. } => Some(eni),
        Decision::Refused { .. } => None,
    }
}

/// A UUID that is the same in every answer, of a thing that has no record of its own.
fn stable_uuid(records: &TaskRecords, kind: &str, name: &str) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [kind, records.task.id.as_str(), name] {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&context.finish().as_ref()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

fn attachment(records: &TaskRecords) -> Attachment {
    let status = records.status();
    let connected = records.observation.as_ref().is_some_and(|o| o.times.connected_at.is_some());
    let state = match (status, eni(records)) {
        (TaskStatus::Stopped, _) => "DELETED",
        (_, None) => "PRECREATED",
        (TaskStatus::Deprovisioning, Some(_)) => "DETACHING",
        (_, Some(_)) if connected => "ATTACHED",
        (_, Some(_)) => "ATTACHING",
    };
    let detail = |name: &str, value: String| KeyValuePair { name: Some(name.to_owned()), value: Some(value) };
    let details = match eni(records) {
        Some(eni) => vec![
            detail("subnetId", eni.subnet.to_string()),
            detail("networkInterfaceId", eni.id.to_string()),
            detail("macAddress", eni.mac.to_string()),
            detail("privateDnsName", eni.private_dns_name.clone()),
            detail("privateIPv4Address", eni.address.to_string()),
        ],
        None => {
            records.task.network.subnets.iter().take(1).map(|s| detail("subnetId", s.to_string())).collect()
        }
    };
    Attachment {
        id: Some(stable_uuid(records, "attachment", "eni")),
        r#type: Some("ElasticNetworkInterface".to_owned()),
        status: Some(state.to_owned()),
        details: Some(details),
    }
}

fn attributes(records: &TaskRecords) -> Vec<Attribute> {
    let spec = &records.task.spec;
    let architecture = if spec.architecture == "arm64" { "arm64" } else { "x86_64" };
    let attribute = |name: &str, value: &str| Attribute {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..Attribute::default()
    };
    let mut attributes = vec![
        attribute("ecs.cpu-architecture", architecture),
        attribute("coracle.isolation", spec.isolation.as_str()),
    ];
    if let Some(snapshot) = &spec.snapshot {
        attributes.push(attribute(SNAPSHOT_TAG, snapshot.id.as_str()));
    }
    attributes
}

fn container(records: &TaskRecords, spec: &ContainerSpec) -> Container {
    let task = &records.task;
    let id = stable_uuid(records, "container", &spec.name);
    let waiting = ContainerObservation::pending(&spec.name);
    let seen = observed(records, &spec.name).unwrap_or(&waiting);
    // Of a task that ended before its containers were made there is no other word.
    let status = match (records.status(), seen.status) {
        (TaskStatus::Stopped, _) => ContainerStatus::Stopped,
        (_, status) => status,
    };
    let health = if spec.health_check.is_some() { seen.health } else { HealthStatus::Unknown };
    let interfaces = eni(records).map(|eni| NetworkInterface {
        attachment_id: Some(stable_uuid(records, "attachment", "eni")),
        private_ipv4_address: Some(eni.address.to_string()),
        ipv6_address: None,
    });
    Container {
        container_arn: Some(
            Arn::container(&task.region, &task.account, &task.cluster, &task.id, &id).to_string(),
        ),
        task_arn: Some(task_arn(records)),
        name: Some(spec.name.clone()),
        image: Some(spec.image.clone()),
        image_digest: seen.image_digest.clone(),
        runtime_id: seen.runtime_id.clone(),
        last_status: Some(status.as_str().to_owned()),
        exit_code: seen.exit_code,
        reason: seen.reason.clone(),
        network_bindings: Some(Vec::new()),
        network_interfaces: Some(interfaces.into_iter().collect()),
        health_status: Some(health.as_str().to_owned()),
        managed_agents: None,
        cpu: Some(spec.cpu_shares.to_string()),
        memory: spec.memory_mib.map(|mib| mib.to_string()),
        memory_reservation: spec.memory_reservation_mib.map(|mib| mib.to_string()),
        gpu_ids: None,
    }
}

fn observed<'a>(records: &'a TaskRecords, name: &str) -> Option<&'a ContainerObservation> {
    records.observation.as_ref()?.containers.iter().find(|container| container.name == name)
}

/// Of the essential containers with a health check: UNHEALTHY if one is, HEALTHY if all are.
///
/// Source: "Determine Amazon ECS task health using container health checks", ECS developer guide.
fn health(records: &TaskRecords) -> HealthStatus {
    let checked = records.task.spec.containers.iter().filter(|c| c.essential && c.health_check.is_some());
    let health: Vec<HealthStatus> = checked
        .map(|c| observed(records, &c.name).map_or(HealthStatus::Unknown, |seen| seen.health))
        .collect();
    if health.contains(&HealthStatus::Unhealthy) {
        HealthStatus::Unhealthy
    } else if health.is_empty() || health.contains(&HealthStatus::Unknown) {
        HealthStatus::Unknown
    } else {
        HealthStatus::Healthy
    }
}
