//! What a container's process is told: arguments, environment, working directory.
//!
//! Source: Docker's "Understand how CMD and ENTRYPOINT interact", and `docker run`'s environment.

use std::path::PathBuf;

use model::sandbox::SandboxContainer;

/// What Docker sets when neither image nor definition says.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The argument vector. A definition's entry point discards the image's command; a definition's
/// command replaces the image's.
pub fn arguments(container: &SandboxContainer) -> Vec<String> {
    let (spec, image) = (&container.spec, &container.image);
    let mut arguments = spec.entry_point.clone().filter(|words| !words.is_empty());
    let replaced = arguments.is_some();
    let words = arguments.get_or_insert_with(|| image.entrypoint.clone());
    match &spec.command {
        Some(command) if !command.is_empty() => words.extend(command.iter().cloned()),
        _ if replaced => {}
        _ => words.extend(image.cmd.iter().cloned()),
    }
    arguments.unwrap_or_default()
}

/// The environment as `NAME=value`, each name once. Later sources win: Docker's own variables, the
/// image, the definition, then what the platform adds.
pub fn environment(container: &SandboxContainer, hostname: &str, home: &str) -> Vec<String> {
    let mut variables: Vec<String> = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if container.spec.tty {
        variables.push("TERM=xterm".to_owned());
    }
    let definition = container.spec.environment.iter().chain(&container.extra_environment);
    let all =
        container.image.env.iter().cloned().chain(definition.map(|(name, value)| format!("{name}={value}")));
    for variable in all {
        // A name is not empty and a NUL byte ends a string: neither can be passed to a process.
        let Some(name) = variable.split_once('=').map(|(name, _)| name.to_owned()) else { continue };
        if name.is_empty() || variable.contains('\0') {
            continue;
        }
        match variables.iter_mut().find(|set| set.split_once('=').is_some_and(|(other, _)| other == name)) {
            Some(set) => *set = variable,
            None => variables.push(variable),
        }
    }
    if !variables.iter().any(|variable| variable.starts_with("HOME=")) {
        variables.push(format!("HOME={home}"));
    }
    variables
}

/// The working directory, absolute; `/` when nobody says.
pub fn working_directory(container: &SandboxContainer) -> PathBuf {
    let chosen = match container.spec.working_directory.as_deref() {
        Some(dir) if !dir.is_empty() => dir,
        _ => &container.image.working_dir,
    };
    PathBuf::from("/").join(chosen)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use model::sandbox::ImageConfig;
    use model::spec::{ContainerSpec, LinuxSpec};

    pub fn container() -> SandboxContainer {
        SandboxContainer {
            spec: ContainerSpec {
                name: "app".into(),
                image: "app".into(),
                essential: true,
                entry_point: None,
                command: None,
                working_directory: None,
                user: None,
                environment: vec![],
                cpu_shares: 0,
                memory_mib: None,
                memory_reservation_mib: None,
                depends_on: vec![],
                health_check: None,
                start_timeout_secs: None,
                stop_timeout_secs: 30,
                restart_policy: None,
                ulimits: vec![],
                linux: LinuxSpec::default(),
                readonly_root_filesystem: false,
                privileged: false,
                mounts: vec![],
                volumes_from: vec![],
                sysctls: vec![],
                ports: vec![],
                stdin_open: false,
                tty: false,
                extra_hosts: vec![],
                docker_labels: vec![],
                log: None,
            },
            image: ImageConfig {
                entrypoint: vec!["/entry".into()],
                cmd: vec!["run".into()],
                env: vec!["PATH=/opt".into(), "A=image".into()],
                ..ImageConfig::default()
            },
            layers: vec![],
            extra_environment: vec![("B".into(), "platform".into())],
        }
    }

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn entry_point_and_command_as_docker_merges_them() {
        let mut app = container();
        assert_eq!(arguments(&app), ["/entry", "run"]);
        app.spec.command = words("stop now");
        assert_eq!(arguments(&app), ["/entry", "stop", "now"]);
        app.spec.entry_point = words("/bin/sh -c");
        assert_eq!(arguments(&app), ["/bin/sh", "-c", "stop", "now"]);
        app.spec.command = None;
        assert_eq!(arguments(&app), ["/bin/sh", "-c"]);
        app.spec.entry_point = Some(vec![]);
        assert_eq!(arguments(&app), ["/entry", "run"]);
    }

    #[test]
    fn later_variables_win() {
        let mut app = container();
        app.spec.environment = vec![
            ("A".into(), "definition".into()),
            ("HOME".into(), "/h".into()),
            (String::new(), "x".into()),
        ];
        assert_eq!(
            environment(&app, "host", "/root"),
            ["PATH=/opt", "HOSTNAME=host", "A=definition", "HOME=/h", "B=platform"]
        );
    }

    #[test]
    fn working_directories_are_absolute() {
        let mut app = container();
        assert_eq!(working_directory(&app), PathBuf::from("/"));
        app.image.working_dir = "srv".into();
        assert_eq!(working_directory(&app), PathBuf::from("/srv"));
        app.spec.working_directory = Some("/opt".into());
        assert_eq!(working_directory(&app), PathBuf::from("/opt"));
    }
}
