//! From a task definition's document to what a host runs.

use aws_api::Error;
use aws_api::ecs::{ContainerDefinition, HealthCheck as WireHealthCheck, LinuxParameters, TaskDefinition};
use model::TaskId;
use model::snapshot::SnapshotSource;
use model::spec::{
    ContainerSpec, Dependency, DependencyCondition, DeviceSpec, HealthCheck, Isolation, LinuxSpec, LogSpec,
    MountSpec, PortMapping, Protocol, RestartPolicy, TaskSpec, Tmpfs, Ulimit, VolumeSpec, VolumesFrom,
};

use super::errors::client;
use super::log_options::LogOptions;
use super::{fargate_size, validate_container};

/// Fargate's default, in GiB.
const DEFAULT_STORAGE: u32 = 20;
/// Seconds from the stop signal to SIGKILL ("stopTimeout" in the API reference).
const DEFAULT_STOP_TIMEOUT: u32 = 30;
/// Seconds ("restartAttemptPeriod" in the API reference).
const DEFAULT_RESTART_PERIOD: u32 = 300;

/// What of a task is not in its definition.
#[derive(Clone, Debug)]
pub(super) struct Run<'a> {
    pub task: &'a TaskId,
    pub family: &'a str,
    pub revision: u32,
    pub isolation: Isolation,
    pub snapshot: Option<&'a SnapshotSource>,
    /// The account's `defaultLogDriverMode`.
    pub log_mode: &'a str,
}

/// Compiles a document with the run request's overrides applied.
///
/// # Errors
/// ClientException when the document is none that was registered here.
pub(super) fn compile(document: &TaskDefinition, run: &Run) -> Result<TaskSpec, Error> {
    let size = |text: &Option<String>| text.clone().unwrap_or_default();
    let storage = document.ephemeral_storage.as_ref().map_or(DEFAULT_STORAGE, |s| number(s.size_in_gib));
    let volumes = document.volumes.iter().flatten();
    let architecture = document.runtime_platform.as_ref().and_then(|p| p.cpu_architecture.as_deref());
    let containers = document.container_definitions.iter().flatten();
    Ok(TaskSpec {
        family: run.family.to_owned(),
        revision: run.revision,
        cpu_units: fargate_size::parse_cpu(&size(&document.cpu))?,
        memory_mib: fargate_size::parse_memory(&size(&document.memory))?,
        ephemeral_storage_gib: storage,
        volumes: volumes.map(|v| VolumeSpec { name: text(v.name.as_ref()) }).collect(),
        containers: containers.map(|c| container(c, run)).collect::<Result<_, _>>()?,
        share_pid_namespace: document.pid_mode.as_deref() == Some("task"),
        architecture: match architecture {
            Some("ARM64") => "arm64".to_owned(),
            _ => "amd64".to_owned(),
        },
        isolation: run.isolation,
        snapshot: run.snapshot.cloned(),
    })
}

fn container(container: &ContainerDefinition, run: &Run) -> Result<ContainerSpec, Error> {
    let name = text(container.name.as_ref());
    let environment = container.environment.iter().flat_map(|e| e.iter());
    let controls = container.system_controls.iter().flatten();
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Ok(ContainerSpec {
        image: text(container.image.as_ref()),
        essential: container.essential.unwrap_or(true),
        entry_point: given(&container.entry_point),
        command: given(&container.command),
        working_directory: filled(&container.working_directory),
        user: filled(&container.user),
        environment: environment.map(|v| (text(v.name.as_ref()), text(v.value.as_ref()))).collect(),
        cpu_shares: number(container.cpu.unwrap_or(0)),
        memory_mib: container.memory.map(number),
        memory_reservation_mib: container.memory_reservation.map(number),
        depends_on: dependencies(container)?,
        health_check: container.health_check.as_ref().and_then(health_check),
        start_timeout_secs: container.start_timeout.map(number),
        stop_timeout_secs: container.stop_timeout.map_or(DEFAULT_STOP_TIMEOUT, number),
        restart_policy: container.restart_policy.as_ref().filter(|policy| policy.enabled).map(|policy| {
            RestartPolicy {
                ignored_exit_codes: policy.ignored_exit_codes.clone().unwrap_or_default(),
                attempt_period_secs: policy.restart_attempt_period.map_or(DEFAULT_RESTART_PERIOD, number),
            }
        }),
        ulimits: container.ulimits.iter().flatten().map(ulimit).collect(),
        linux: container.linux_parameters.as_ref().map(linux).unwrap_or_default(),
        readonly_root_filesystem: container.readonly_root_filesystem.unwrap_or(false),
        privileged: container.privileged.unwrap_or(false),
        mounts: mounts(container),
        volumes_from: volumes_from(container),
        sysctls: controls.map(|c| (text(c.namespace.as_ref()), text(c.value.as_ref()))).collect(),
        ports: ports(container)?,
        stdin_open: container.interactive.unwrap_or(false),
        tty: container.pseudo_terminal.unwrap_or(false),
        extra_hosts: {
            let hosts = container.extra_hosts.iter().flatten();
            hosts.map(|host| (host.hostname.clone(), host.ip_address.clone())).collect()
        },
        docker_labels: {
            let labels = container.docker_labels.iter().flatten();
            labels.map(|(key, value)| (key.clone(), value.clone())).collect()
        },
        log: log(container, &name, run)?,
        name,
    })
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

/// Registering refuses negative numbers.
fn number(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn dependencies(container: &ContainerDefinition) -> Result<Vec<Dependency>, Error> {
    let list = container.depends_on.iter().flatten();
    list.map(|dependency| {
        let condition = match dependency.condition.as_str() {
            "START" => DependencyCondition::Start,
            "COMPLETE" => DependencyCondition::Complete,
            "SUCCESS" => DependencyCondition::Success,
            "HEALTHY" => DependencyCondition::Healthy,
            other => return Err(client(format!("'{other}' is not a condition of a container dependency."))),
        };
        Ok(Dependency { container: dependency.container_name.clone(), condition })
    })
    .collect()
}

/// `None` for `NONE`. As in Docker, what follows CMD-SHELL's text are the shell's further arguments.
fn health_check(check: &WireHealthCheck) -> Option<HealthCheck> {
    let (form, rest) = check.command.split_first()?;
    let command = match form.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => {
            let shell = ["/bin/sh", "-c"].map(str::to_owned);
            shell.into_iter().chain(rest.iter().cloned()).collect()
        }
        _ => return None,
    };
    Some(HealthCheck {
        command,
        interval_secs: check.interval.map_or(30, number),
        timeout_secs: check.timeout.map_or(5, number),
        retries: check.retries.map_or(3, number),
        start_period_secs: check.start_period.map_or(0, number),
    })
}

/// -1 is no limit, RLIM_INFINITY.
fn ulimit(ulimit: &aws_api::ecs::Ulimit) -> Ulimit {
    let limit = |value: i32| u64::try_from(value).unwrap_or(u64::MAX);
    Ulimit { name: ulimit.name.clone(), soft: limit(ulimit.soft_limit), hard: limit(ulimit.hard_limit) }
}

fn linux(linux: &LinuxParameters) -> LinuxSpec {
    let capabilities = linux.capabilities.clone().unwrap_or_default();
    let tmpfs = linux.tmpfs.iter().flatten();
    LinuxSpec {
        init_process: linux.init_process_enabled.unwrap_or(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        devices: linux.devices.iter().flatten().map(device).collect(),
        tmpfs: tmpfs
            .map(|mount| Tmpfs {
                container_path: mount.container_path.clone(),
                size_mib: number(mount.size),
                mount_options: mount.mount_options.clone().unwrap_or_default(),
            })
            .collect(),
        shared_memory_mib: linux.shared_memory_size.map(number),
    }
}

/// Source: Device in the API reference; by default all three permissions.
fn device(device: &aws_api::ecs::Device) -> DeviceSpec {
    let may = |what: &str| match device.permissions.as_deref() {
        None | Some([]) => true,
        Some(list) => list.iter().any(|permission| permission == what),
    };
    let container_path = device.container_path.clone().filter(|path| !path.is_empty());
    DeviceSpec {
        container_path: container_path.unwrap_or_else(|| device.host_path.clone()),
        host_path: device.host_path.clone(),
        read: may("read"),
        write: may("write"),
        mknod: may("mknod"),
    }
}

fn mounts(container: &ContainerDefinition) -> Vec<MountSpec> {
    let list = container.mount_points.iter().flatten();
    list.map(|mount| MountSpec {
        volume: text(mount.source_volume.as_ref()),
        container_path: text(mount.container_path.as_ref()),
        read_only: mount.read_only.unwrap_or(false),
    })
    .collect()
}

fn volumes_from(container: &ContainerDefinition) -> Vec<VolumesFrom> {
    let list = container.volumes_from.iter().flatten();
    list.map(|from| VolumesFrom {
        container: text(from.source_container.as_ref()),
        read_only: from.read_only.unwrap_or(false),
    })
    .collect()
}

/// Ranges counted out: registering bounds how many ports they name.
fn ports(container: &ContainerDefinition) -> Result<Vec<PortMapping>, Error> {
    let mut ports = Vec::new();
    for mapping in container.port_mappings.iter().flatten() {
        let (first, last) = validate_container::port_range(mapping)?;
        let protocol = if mapping.protocol.as_deref() == Some("udp") { Protocol::Udp } else { Protocol::Tcp };
        for container_port in first..=last {
            ports.push(PortMapping { container_port, protocol, name: mapping.name.clone() });
        }
    }
    Ok(ports)
}

fn log(container: &ContainerDefinition, name: &str, run: &Run) -> Result<Option<LogSpec>, Error> {
    let Some(log) = &container.log_configuration else { return Ok(None) };
    let options = LogOptions::parse(&log.options.clone().unwrap_or_default())?;
    let prefix = options.stream_prefix.as_deref().unwrap_or("ecs");
    Ok(Some(LogSpec {
        stream: format!("{prefix}/{name}/{}", run.task),
        mode: options.mode(run.log_mode),
        create_group: options.create_group,
        region: options.region,
        group: options.group,
        multiline_pattern: options.multiline_pattern,
    }))
}
