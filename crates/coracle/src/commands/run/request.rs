//! What `coracle run` asks for, from its arguments.

use std::collections::BTreeMap;

use anyhow::bail;
use aws_api::ecs::{
    ContainerDefinition, KeyValuePair, LogConfiguration, PortMapping, RegisterTaskDefinitionRequest,
    RunTaskRequest,
};

use super::RunArgs;
use crate::commands::fargate_task;
use crate::commands::log_reader::StreamName;
use crate::state_dir::Endpoint;

/// Where the output of `coracle run` goes.
const LOG_GROUP: &str = "/coracle/run";

/// The task definition's family, unless the task has a name.
const FAMILY: &str = "coracle-run";

/// The container's name, unless the task has one.
const CONTAINER: &str = "main";

/// The first part of the log streams' names.
const LOG_PREFIX: &str = "run";

/// Who started these tasks, as ListTasks filters them.
const STARTED_BY: &str = "coracle-run";

/// `variable` reads the environment of this process.
pub fn definition(
    args: &RunArgs,
    server: &Endpoint,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<RegisterTaskDefinitionRequest> {
    let name = args.name.as_deref();
    let options = BTreeMap::from(
        [
            ("awslogs-group", LOG_GROUP),
            ("awslogs-region", &server.region),
            ("awslogs-stream-prefix", LOG_PREFIX),
            ("awslogs-create-group", "true"),
            // Whoever looks on wants all of it.
            ("mode", "blocking"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let ports = args.publish.iter().map(|pair| PortMapping {
        container_port: Some(pair.container.into()),
        protocol: Some("tcp".to_owned()),
        ..PortMapping::default()
    });
    let container = ContainerDefinition {
        name: Some(container(args).to_owned()),
        image: Some(args.image.clone()),
        essential: Some(true),
        command: (!args.command.is_empty()).then(|| args.command.clone()),
        environment: Some(environment(&args.env, variable)?.into()),
        port_mappings: Some(ports.collect()),
        privileged: args.privileged.then_some(true),
        log_configuration: Some(LogConfiguration {
            log_driver: "awslogs".to_owned(),
            options: Some(options),
            secret_options: None,
        }),
        ..ContainerDefinition::default()
    };
    Ok(RegisterTaskDefinitionRequest {
        family: name.unwrap_or(FAMILY).to_owned(),
        // Fargate demands one for awslogs and for private registries.
        execution_role_arn: Some(format!("arn:aws:iam::{}:role/coracle-run", server.account)),
        network_mode: Some("awsvpc".to_owned()),
        container_definitions: vec![container],
        requires_compatibilities: Some(vec!["FARGATE".to_owned()]),
        cpu: Some(args.cpu.clone()),
        memory: Some(args.memory.clone()),
        ..RegisterTaskDefinitionRequest::default()
    })
}

pub fn task(args: &RunArgs, server: &Endpoint, definition: String) -> RunTaskRequest {
    RunTaskRequest { cluster: args.cluster.clone(), ..fargate_task::request(server, STARTED_BY, definition) }
}

/// The name of the task's container.
pub fn container(args: &RunArgs) -> &str {
    args.name.as_deref().unwrap_or(CONTAINER)
}

/// Where the output of the task is.
pub fn stream(args: &RunArgs, task_id: &str) -> StreamName {
    let container = container(args);
    StreamName {
        region: None,
        group: LOG_GROUP.to_owned(),
        stream: format!("{LOG_PREFIX}/{container}/{task_id}"),
    }
}

/// `K=V`, or `K` with the value that it has here; left out if it has none, as `docker run` does.
/// The last of several of one name counts.
fn environment(
    given: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Vec<KeyValuePair>> {
    let mut values: Vec<(String, String)> = Vec::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), variable(text)),
        };
        if name.is_empty() {
            bail!("--env '{text}' has no name; write it as NAME=VALUE");
        }
        values.retain(|(other, _)| other != name);
        values.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(values
        .into_iter()
        .map(|(name, value)| KeyValuePair { name: Some(name), value: Some(value) })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_command_line_or_from_here() {
        let here = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let given = ["A=1", "B=x=y", "HOME", "MISSING", "A=2", "EMPTY="].map(str::to_owned);
        let found: Vec<String> = environment(&given, here)
            .unwrap()
            .into_iter()
            .map(|pair| format!("{}={}", pair.name.unwrap(), pair.value.unwrap()))
            .collect();
        assert_eq!(found, ["B=x=y", "HOME=/root", "A=2", "EMPTY="]);
        assert!(environment(&["=x".to_owned()], here).is_err());
        assert!(environment(&[String::new()], here).is_err());
    }
}
