//! What ECS demands of one container definition.
//!
//! Source: ContainerDefinition in the API reference; messages as the service words them where they are
//! known.

use std::collections::HashSet;

use aws_api::Error;
use aws_api::ecs::{
    ContainerDefinition, HealthCheck, KeyValuePair, LinuxParameters, PortMapping, SystemControl,
    TaskDefinition, Ulimit, Volume,
};

use super::errors::client;
use super::identifier::is_name;
use super::log_options::LogOptions;

/// Docker's least, in MiB.
const MIN_MEMORY: i32 = 6;
/// A day, in seconds. (AWS ends at 120 s.)
const MAX_TIMEOUT: i32 = 86_400;
/// How many ports the mappings of a task may name, ranges counted out.
pub(super) const MAX_PORTS: usize = 1_000;

/// Linux's capabilities without `CAP_` (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Mount options of tmpfs that stay inside it: no binds, no propagation, no remount.
const TMPFS_FLAGS: [&str; 20] = [
    "defaults",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
];
const TMPFS_VALUES: [&str; 5] = ["mode", "uid", "gid", "nr_inodes", "nr_blocks"];

pub(super) fn check(
    definition: &TaskDefinition,
    container: &ContainerDefinition,
    volumes: &[Volume],
) -> Result<(), Error> {
    let name = container.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(client("Container.name should not be null or empty."));
    }
    if !is_name(name) {
        return Err(client("Container.name contains invalid characters."));
    }
    check_image(container.image.as_deref().unwrap_or_default())?;
    check_not_served(name, container)?;
    check_network(definition.network_mode.as_deref(), container)?;
    check_memory(definition, name, container)?;
    check_timeouts(name, container)?;
    check_process(name, container)?;
    check_mounts(name, container, volumes)?;
    for mapping in container.port_mappings.as_deref().unwrap_or_default() {
        check_port(definition.network_mode.as_deref(), name, mapping)?;
    }
    if let Some(check) = &container.health_check {
        check_health(name, check)?;
    }
    if let Some(linux) = &container.linux_parameters {
        check_linux(name, linux)?;
    }
    check_ulimits(container.ulimits.as_deref().unwrap_or_default())?;
    check_sysctls(name, container.system_controls.as_deref().unwrap_or_default())?;
    check_log(container)
}

fn setting(container: &str, text: impl std::fmt::Display) -> Error {
    client(format!("Invalid setting for container '{container}'. {text}"))
}

fn check_image(image: &str) -> Result<(), Error> {
    if image.is_empty() {
        return Err(client("Container.image should not be null or empty."));
    }
    let (repository, digest) = image.split_once('@').map_or((image, None), |(r, d)| (r, Some(d)));
    if repository.len() > 255 {
        return Err(client("Container.image repository:tag should be 255 characters or less."));
    }
    let characters = |c: char| c.is_ascii_alphanumeric() || "-_:./#".contains(c);
    let digest_valid = digest.is_none_or(|digest| {
        let hex = digest.strip_prefix("sha256:");
        hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    if repository.is_empty() || !repository.chars().all(characters) || !digest_valid {
        return Err(client("Container.image contains invalid characters."));
    }
    Ok(())
}

fn check_not_served(name: &str, container: &ContainerDefinition) -> Result<(), Error> {
    fn given<T>(list: Option<&Vec<T>>) -> bool {
        list.is_some_and(|list| !list.is_empty())
    }
    if given(container.secrets.as_ref()) {
        return Err(setting(
            name,
            "Coracle does not serve 'secrets' yet: it has no Secrets Manager or Parameter Store to read them from. \
             Use 'environment'.",
        ));
    }
    if given(container.environment_files.as_ref()) {
        return Err(setting(
            name,
            "Coracle does not serve 'environmentFiles' yet: it has no Amazon S3 to read them from. Use 'environment'.",
        ));
    }
    if container.firelens_configuration.is_some() {
        return Err(setting(name, "Coracle does not serve FireLens yet. Use the log driver awslogs."));
    }
    let accelerator = |r: &aws_api::ecs::ResourceRequirement| r.r#type != "GPU";
    if container.resource_requirements.as_deref().unwrap_or_default().iter().any(accelerator) {
        return Err(setting(
            name,
            "resourceRequirements of the type InferenceAccelerator are not supported.",
        ));
    }
    Ok(())
}

fn check_network(mode: Option<&str>, container: &ContainerDefinition) -> Result<(), Error> {
    if mode != Some("awsvpc") {
        return Ok(());
    }
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let refused = if given(&container.links) {
        "Links are"
    } else if container.hostname.as_ref().is_some_and(|h| !h.is_empty()) {
        "hostname is"
    } else if given(&container.dns_servers) {
        "DNS servers are"
    } else if given(&container.dns_search_domains) {
        "DNS search domains are"
    } else if container.disable_networking == Some(true) {
        "Disable Networking is"
    } else {
        return check_extra_hosts(container);
    };
    Err(client(format!("{refused} not supported on container when networkMode=awsvpc.")))
}

fn check_extra_hosts(container: &ContainerDefinition) -> Result<(), Error> {
    for host in container.extra_hosts.as_deref().unwrap_or_default() {
        let name = host.hostname.as_str();
        let characters = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if name.is_empty() || name.len() > 253 || !name.chars().all(characters) {
            return Err(client(format!("The hostname '{name}' in extraHosts is invalid.")));
        }
        if host.ip_address.parse::<std::net::IpAddr>().is_err() {
            return Err(client(format!("The ipAddress of '{name}' in extraHosts is invalid.")));
        }
    }
    Ok(())
}

fn check_memory(
    definition: &TaskDefinition,
    name: &str,
    container: &ContainerDefinition,
) -> Result<(), Error> {
    if container.memory.is_none() && container.memory_reservation.is_none() && definition.memory.is_none() {
        return Err(setting(name, "At least one of 'memory' or 'memoryReservation' must be specified."));
    }
    check_amounts(name, container)
}

/// A container's CPU and memory by themselves.
pub(super) fn check_amounts(name: &str, container: &ContainerDefinition) -> Result<(), Error> {
    if container.cpu.unwrap_or(0) < 0 {
        return Err(setting(name, "'cpu' must be 0 or more."));
    }
    let (hard, soft) = (container.memory, container.memory_reservation);
    if hard.is_some_and(|mib| mib < MIN_MEMORY) {
        return Err(setting(name, format_args!("'memory' must be at least {MIN_MEMORY} MiB.")));
    }
    if soft.is_some_and(|mib| mib < 1) {
        return Err(setting(name, "'memoryReservation' must be at least 1 MiB."));
    }
    if let (Some(hard), Some(soft)) = (hard, soft)
        && hard < soft
    {
        return Err(setting(name, "'memory' must be greater than or equal to 'memoryReservation'."));
    }
    Ok(())
}

fn check_timeouts(name: &str, container: &ContainerDefinition) -> Result<(), Error> {
    if let Some(start) = container.start_timeout {
        if start < 2 {
            return Err(client(format!(
                "Granular start timeout on container '{name}' must be at least 2 seconds."
            )));
        }
        if start > MAX_TIMEOUT {
            return Err(setting(name, format_args!("'startTimeout' must be at most {MAX_TIMEOUT} seconds.")));
        }
    }
    if container.stop_timeout.is_some_and(|stop| !(0..=MAX_TIMEOUT).contains(&stop)) {
        return Err(setting(
            name,
            format_args!("'stopTimeout' must be between 0 and {MAX_TIMEOUT} seconds."),
        ));
    }
    if let Some(policy) = &container.restart_policy {
        if policy.restart_attempt_period.is_some_and(|period| !(60..=1800).contains(&period)) {
            return Err(client(format!(
                "the 'restartAttemptPeriod' setting for container '{name}' must be between 60 and 1800"
            )));
        }
        let codes = policy.ignored_exit_codes.as_deref().unwrap_or_default();
        if codes.len() > 50 {
            return Err(setting(name, "'ignoredExitCodes' can have at most 50 exit codes."));
        }
        if codes.iter().any(|code| !(0..=255).contains(code)) {
            return Err(setting(name, "'ignoredExitCodes' must be between 0 and 255."));
        }
    }
    Ok(())
}

/// What becomes arguments, environment or paths of the process: none may hold a NUL.
fn check_process(name: &str, container: &ContainerDefinition) -> Result<(), Error> {
    let lists = [("command", &container.command), ("entryPoint", &container.entry_point)];
    for (what, list) in lists {
        if list.iter().flatten().any(|text| text.contains('\0')) {
            return Err(setting(name, format_args!("'{what}' must not contain NUL characters.")));
        }
    }
    check_environment(name, container.environment.as_ref().map_or(&[][..], |e| e.as_slice()))?;
    if let Some(path) = container.working_directory.as_deref().filter(|path| !path.is_empty())
        && !is_absolute(path)
    {
        return Err(setting(name, format_args!("'workingDirectory' must be an absolute path: '{path}'.")));
    }
    if let Some(user) = container.user.as_deref()
        && (user.len() > 255
            || user.chars().any(|c| c.is_control() || c.is_whitespace())
            || user.matches(':').count() > 1)
    {
        return Err(setting(name, "'user' must have the form user, user:group, uid or uid:gid."));
    }
    let labels = container.docker_labels.iter().flatten();
    if labels.into_iter().any(|(key, _)| key.is_empty()) {
        return Err(setting(name, "'dockerLabels' must have names."));
    }
    Ok(())
}

pub(super) fn check_environment(container: &str, environment: &[KeyValuePair]) -> Result<(), Error> {
    for variable in environment {
        let key = variable.name.as_deref().unwrap_or_default();
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(setting(
                container,
                "Environment variables must have names without '=' and NUL characters.",
            ));
        }
        if variable.value.as_deref().unwrap_or_default().contains('\0') {
            return Err(setting(
                container,
                format_args!(
                    "The value of the environment variable '{key}' must not contain NUL characters."
                ),
            ));
        }
    }
    Ok(())
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && path.len() <= 4096 && !path.contains('\0')
}

fn check_mounts(name: &str, container: &ContainerDefinition, volumes: &[Volume]) -> Result<(), Error> {
    let mut paths = HashSet::new();
    for mount in container.mount_points.as_deref().unwrap_or_default() {
        let volume = mount.source_volume.as_deref().unwrap_or_default();
        if !volumes.iter().any(|v| v.name.as_deref() == Some(volume)) {
            return Err(client(format!("Unknown volume '{volume}'.")));
        }
        check_mount_path(
            name,
            "mountPoints",
            mount.container_path.as_deref().unwrap_or_default(),
            &mut paths,
        )?;
    }
    let tmpfs = container.linux_parameters.as_ref().and_then(|linux| linux.tmpfs.as_deref());
    for mount in tmpfs.unwrap_or_default() {
        check_mount_path(name, "tmpfs", &mount.container_path, &mut paths)?;
    }
    Ok(())
}

fn check_mount_path<'a>(
    name: &str,
    what: &str,
    path: &'a str,
    paths: &mut HashSet<&'a str>,
) -> Result<(), Error> {
    let steps_up = path.split('/').any(|part| part == "..");
    if !is_absolute(path) || steps_up || path.trim_matches('/').is_empty() {
        return Err(setting(
            name,
            format_args!(
                "The containerPath in '{what}' must be an absolute path without '..' and not the root: '{path}'."
            ),
        ));
    }
    if !paths.insert(path.trim_end_matches('/')) {
        return Err(setting(name, format_args!("Duplicate mount point: {path}")));
    }
    Ok(())
}

/// The first and last container port of a mapping.
pub(super) fn port_range(mapping: &PortMapping) -> Result<(u16, u16), Error> {
    let Some(range) = mapping.container_port_range.as_deref() else {
        let port = u16::try_from(mapping.container_port.unwrap_or(0)).ok().filter(|port| *port > 0);
        let port =
            port.ok_or_else(|| client("Invalid 'containerPort' setting. It must be between 1 and 65535."))?;
        return Ok((port, port));
    };
    let bounds = range.split_once('-').and_then(|(first, last)| {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        Some((port(first)?, port(last)?)).filter(|(first, last)| first < last)
    });
    bounds.ok_or_else(|| client(format!("Invalid 'containerPortRange' setting '{range}'.")))
}

fn check_port(mode: Option<&str>, name: &str, mapping: &PortMapping) -> Result<(), Error> {
    if mapping.container_port_range.is_some()
        && (mapping.container_port.is_some() || mapping.host_port.is_some())
    {
        return Err(setting(name, "A port mapping cannot specify both single port and port range."));
    }
    port_range(mapping)?;
    if matches!(mode, Some("awsvpc" | "host")) && mapping.host_port != mapping.container_port {
        return Err(client(format!(
            "When networkMode={}, the host ports and container ports in port mappings must match.",
            mode.unwrap_or_default()
        )));
    }
    if mapping.host_port.is_some_and(|port| !(0..=65535).contains(&port)) {
        return Err(setting(name, "'hostPort' must be between 0 and 65535."));
    }
    if !matches!(mapping.protocol.as_deref(), None | Some("tcp" | "udp")) {
        return Err(setting(name, "The protocol of a port mapping should be one of [tcp,udp]."));
    }
    if let Some(port_name) = mapping.name.as_deref() {
        let characters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if port_name.is_empty()
            || port_name.len() > 64
            || port_name.starts_with('-')
            || !port_name.bytes().all(characters)
        {
            return Err(setting(
                name,
                format_args!(
                    "The port mapping name '{port_name}' must have 1 to 64 lower-case letters, numbers, underscores and \
                     hyphens, and not begin with a hyphen."
                ),
            ));
        }
    }
    Ok(())
}

/// Source: HealthCheck in the API reference.
fn check_health(name: &str, check: &HealthCheck) -> Result<(), Error> {
    let words = check.command.len();
    let valid = match check.command.first().map(String::as_str) {
        Some("NONE") => words == 1,
        Some("CMD" | "CMD-SHELL") => words > 1 && !check.command[1].is_empty(),
        _ => false,
    };
    if !valid || check.command.iter().any(|text| text.contains('\0')) {
        return Err(setting(
            name,
            "The health check command must begin with CMD or CMD-SHELL, followed by a command, or be NONE.",
        ));
    }
    for (what, value, range) in [
        ("interval", check.interval, 5..=300),
        ("timeout", check.timeout, 2..=60),
        ("retries", check.retries, 1..=10),
        ("startPeriod", check.start_period, 0..=300),
    ] {
        if value.is_some_and(|value| !range.contains(&value)) {
            return Err(setting(
                name,
                format_args!(
                    "The health check '{what}' must be between {} and {}.",
                    range.start(),
                    range.end()
                ),
            ));
        }
    }
    Ok(())
}

fn check_linux(name: &str, linux: &LinuxParameters) -> Result<(), Error> {
    if let Some(capabilities) = &linux.capabilities {
        for capability in [&capabilities.add, &capabilities.drop].into_iter().flatten().flatten() {
            if capability != "ALL" && !CAPABILITIES.contains(&capability.as_str()) {
                return Err(setting(name, format_args!("'{capability}' is not a Linux capability's name.")));
            }
        }
    }
    if linux.shared_memory_size.is_some_and(|mib| mib < 1) {
        return Err(setting(name, "'sharedMemorySize' must be at least 1 MiB."));
    }
    for tmpfs in linux.tmpfs.as_deref().unwrap_or_default() {
        if tmpfs.size < 1 {
            return Err(setting(name, "The size of a tmpfs must be at least 1 MiB."));
        }
        for option in tmpfs.mount_options.as_deref().unwrap_or_default() {
            let valid = match option.split_once('=') {
                None => TMPFS_FLAGS.contains(&option.as_str()),
                Some((key, value)) => {
                    let digits =
                        !value.is_empty() && value.len() <= 10 && value.bytes().all(|b| b.is_ascii_digit());
                    TMPFS_VALUES.contains(&key) && digits
                }
            };
            if !valid {
                return Err(setting(
                    name,
                    format_args!("The tmpfs mount option '{option}' is not supported."),
                ));
            }
        }
    }
    Ok(())
}

fn check_ulimits(ulimits: &[Ulimit]) -> Result<(), Error> {
    let mut names = HashSet::new();
    for ulimit in ulimits {
        let name = ulimit.name.as_str();
        if !aws_api::ecs::values::ulimit_name::MEMBERS.contains(&name) {
            return Err(client(format!("'{name}' is not an ulimit's name.")));
        }
        if !names.insert(name) {
            return Err(client(format!("Duplicate ulimit {name}")));
        }
        let (soft, hard) = (ulimit.soft_limit, ulimit.hard_limit);
        if soft < -1 || hard < -1 {
            return Err(client(format!("The limits of ulimit {name} must be -1 (unlimited) or more")));
        }
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(client(format!("Soft limit exceeds hard limit for ulimit {name}")));
        }
    }
    Ok(())
}

/// Names and values by themselves; which names there may be depends on the isolation.
fn check_sysctls(name: &str, controls: &[SystemControl]) -> Result<(), Error> {
    for control in controls {
        let key = control.namespace.as_deref().unwrap_or_default();
        let value = control.value.as_deref().unwrap_or_default();
        let characters = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let plain = !key.is_empty()
            && key.len() <= 255
            && key.chars().all(characters)
            && !key.contains("..")
            && !key.contains('/');
        if !plain {
            return Err(setting(
                name,
                format_args!("The system control '{key}' is not a kernel parameter's name."),
            ));
        }
        if value.is_empty() || value.len() > 255 || value.chars().any(char::is_control) {
            return Err(setting(name, format_args!("The value of the system control '{key}' is invalid.")));
        }
    }
    Ok(())
}

fn check_log(container: &ContainerDefinition) -> Result<(), Error> {
    let Some(log) = &container.log_configuration else { return Ok(()) };
    if log.secret_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(client("Coracle does not serve 'secretOptions' of log configurations yet."));
    }
    match log.log_driver.as_str() {
        "awslogs" => LogOptions::parse(&log.options.clone().unwrap_or_default()).map(|_| ()),
        driver @ ("splunk" | "awsfirelens") => Err(client(format!(
            "Coracle does not serve the log driver {driver} yet. Use the log driver awslogs."
        ))),
        // Others are Fargate's to refuse, in its words.
        _ => Ok(()),
    }
}
