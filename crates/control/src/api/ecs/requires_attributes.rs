//! `requiresAttributes` of task definitions: what a container instance would have to offer. Fargate
//! offers all of it, and Coracle has no container instances; tools read the list all the same.
//!
//! Source: "Container agent capabilities" in the ECS developer guide.

use aws_api::ecs::{Attribute, TaskDefinition};

pub(super) fn of(definition: &TaskDefinition) -> Vec<Attribute> {
    let mut names: Vec<String> = Vec::new();
    let mut need = |name: &str| {
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    };
    for container in definition.container_definitions.as_deref().unwrap_or_default() {
        if let Some(log) = &container.log_configuration {
            need(&format!("com.amazonaws.ecs.capability.logging-driver.{}", log.log_driver));
            need("com.amazonaws.ecs.capability.docker-remote-api.1.19");
            if log.log_driver == "awslogs" && definition.execution_role_arn.is_some() {
                need("ecs.capability.execution-role-awslogs");
            }
        }
        if container.depends_on.as_ref().is_some_and(|d| !d.is_empty())
            || container.start_timeout.is_some()
            || container.stop_timeout.is_some()
        {
            need("ecs.capability.container-ordering");
        }
        if container.health_check.is_some() {
            need("ecs.capability.container-health-check");
            need("com.amazonaws.ecs.capability.docker-remote-api.1.29");
        }
        if container.restart_policy.as_ref().is_some_and(|r| r.enabled) {
            need("ecs.capability.container-restart-policy");
        }
        let linux = container.linux_parameters.as_ref();
        if linux.is_some_and(|l| l.init_process_enabled == Some(true)) {
            need("com.amazonaws.ecs.capability.docker-remote-api.1.25");
        }
        if linux.is_some_and(|l| l.shared_memory_size.is_some() || l.tmpfs.is_some()) {
            need("com.amazonaws.ecs.capability.docker-remote-api.1.22");
        }
        if super::fargate_rules::is_ecr_image(container.image.as_deref().unwrap_or_default()) {
            need("com.amazonaws.ecs.capability.ecr-auth");
            if definition.execution_role_arn.is_some() {
                need("ecs.capability.execution-role-ecr-pull");
            }
        }
    }
    if definition.task_role_arn.is_some() {
        need("com.amazonaws.ecs.capability.task-iam-role");
    }
    if definition.pid_mode.is_some() || definition.ipc_mode.is_some() {
        need("ecs.capability.pid-ipc-namespace-sharing");
    }
    if definition.network_mode.as_deref() == Some("awsvpc") {
        need("com.amazonaws.ecs.capability.docker-remote-api.1.18");
        need("ecs.capability.task-eni");
    }
    names.into_iter().map(|name| Attribute { name, ..Attribute::default() }).collect()
}
