//! RunTask, StopTask, DescribeTasks, ListTasks.

use model::assignment::{Assignment, Decision};
use model::spec::{DependencyCondition, LogMode, Protocol};
use model::status::{DesiredStatus, StopCause, StopCode};
use model::task::Task;
use model::{TaskId, Timestamp};
use serde_json::{Value, json};
use store::{Range, Txn};

use super::{Fixture, GROUP, SUBNET, assert_error, call, container, definition, fixture, run_request};
use crate::keys::{PENDING, TASKS, TaskPath};

fn path(f: &Fixture, arn: &str) -> TaskPath {
    let (rest, id) = arn.rsplit_once('/').unwrap();
    let cluster = model::ClusterName::parse(rest.rsplit('/').next().unwrap()).unwrap();
    f.caller.scope().task(&cluster, &TaskId::parse(id).unwrap())
}

pub(super) async fn intent(f: &Fixture, arn: &str) -> Task {
    f.ecs.store.get_json(&path(f, arn).intent()).await.unwrap().unwrap().value
}

/// Writes what the reconciler writes for a task that no host can take.
pub(super) async fn refuse(f: &Fixture, arn: &str) {
    let path = path(f, arn);
    let assignment = Assignment {
        task: intent(f, arn).await.id,
        decided_at: Timestamp(1_700_000_001_000),
        decision: Decision::Refused {
            cause: StopCause {
                code: StopCode::TaskFailedToStart,
                reason: "Capacity is unavailable at this time. Please try again later or in a different availability zone"
                    .to_owned(),
            },
        },
    };
    f.ecs.store.commit(Txn::new().put_json(path.assignment(), &assignment)).await.unwrap();
}

async fn count(f: &Fixture, prefix: &str) -> usize {
    f.ecs.store.range(Range::prefix(prefix).keys_only()).await.unwrap().kvs.len()
}

#[tokio::test]
async fn a_task_starts_as_fargate_shows_it() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let woken = f.ecs.wake.clone();
    let out = call!(f, run_task, run_request(json!({ "count": 2, "startedBy": "ci/42" }))).unwrap();
    woken.notified().await;
    assert_eq!(out.failures.unwrap(), []);
    let tasks = out.tasks.unwrap();
    assert_eq!((tasks.len(), count(&f, TASKS).await, count(&f, PENDING).await), (2, 2, 2));
    let task = serde_json::to_value(&tasks[0]).unwrap();
    for (member, want) in [
        ("clusterArn", json!("arn:aws:ecs:eu-central-1:123456789012:cluster/default")),
        ("taskDefinitionArn", json!("arn:aws:ecs:eu-central-1:123456789012:task-definition/web:1")),
        ("lastStatus", json!("PROVISIONING")),
        ("desiredStatus", json!("RUNNING")),
        ("cpu", json!("256")),
        ("memory", json!("512")),
        ("createdAt", json!(1_700_000_000.0)),
        ("group", json!("family:web")),
        ("startedBy", json!("ci/42")),
        ("launchType", json!("FARGATE")),
        ("platformVersion", json!("1.4.0")),
        ("platformFamily", json!("Linux")),
        ("availabilityZone", json!("eu-central-1a")),
        ("healthStatus", json!("UNKNOWN")),
        ("enableExecuteCommand", json!(false)),
        ("version", json!(1)),
        ("tags", json!([])),
        ("ephemeralStorage", json!({ "sizeInGiB": 20 })),
        ("fargateEphemeralStorage", json!({ "sizeInGiB": 20 })),
        (
            "overrides",
            json!({ "containerOverrides": [{ "name": "app" }], "inferenceAcceleratorOverrides": [] }),
        ),
        (
            "attributes",
            json!([
                { "name": "ecs.cpu-architecture", "value": "x86_64" },
                { "name": "coracle.isolation", "value": "container" },
            ]),
        ),
    ] {
        assert_eq!(task[member], want, "{member}");
    }
    let attachment = &task["attachments"][0];
    assert_eq!(attachment["type"], "ElasticNetworkInterface");
    assert_eq!(attachment["status"], "PRECREATED");
    assert_eq!(attachment["details"], json!([{ "name": "subnetId", "value": SUBNET }]));
    let container = &task["containers"][0];
    assert_eq!((&container["name"], &container["lastStatus"]), (&json!("app"), &json!("PENDING")));
    assert_eq!((&container["cpu"], &container["taskArn"]), (&json!("0"), &task["taskArn"]));
    for absent in ["stopCode", "stoppedReason", "startedAt", "connectivity", "capacityProviderName"] {
        assert!(task.get(absent).is_none(), "{absent}");
    }
    // The same in every answer.
    let described = call!(f, describe_tasks, json!({ "tasks": [tasks[0].task_arn] })).unwrap().tasks.unwrap();
    assert_eq!(described[0], tasks[0]);
}

#[tokio::test]
async fn requests_that_cannot_be_run_change_nothing() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    call!(f, register_task_definition, definition(json!({ "family": "old" }))).unwrap();
    call!(f, deregister_task_definition, json!({ "taskDefinition": "old:1" })).unwrap();
    call!(f, create_cluster, json!({ "clusterName": "off" })).unwrap();
    call!(f, delete_cluster, json!({ "cluster": "off" })).unwrap();
    let network = |subnets: Value, groups: Value| json!({ "networkConfiguration": { "awsvpcConfiguration": { "subnets": subnets, "securityGroups": groups } } });
    let overrides = |container: Value| json!({ "overrides": { "containerOverrides": [container] } });
    let spot = json!([{ "capacityProvider": "FARGATE_SPOT", "weight": 1 }]);
    let cases = [
        (json!({ "cluster": "gone" }), "ClusterNotFoundException", "Cluster not found."),
        (json!({ "cluster": "off" }), "ClusterNotFoundException", "The referenced cluster was inactive."),
        (json!({ "taskDefinition": "gone" }), "ClientException", "TaskDefinition not found."),
        (json!({ "taskDefinition": "web:2" }), "ClientException", "TaskDefinition not found."),
        (json!({ "taskDefinition": "old" }), "ClientException", "TaskDefinition not found."),
        (json!({ "taskDefinition": "old:1" }), "InvalidParameterException", "TaskDefinition is inactive"),
        (json!({ "count": 0 }), "InvalidParameterException", "count must be between 1 and 10."),
        (json!({ "count": 11 }), "InvalidParameterException", "count must be between 1 and 10."),
        (json!({ "startedBy": "x".repeat(129) }), "InvalidParameterException", "startedBy"),
        (json!({ "group": "service:x" }), "InvalidParameterException", "reserved for services"),
        (json!({ "clientToken": "a b" }), "InvalidParameterException", "clientToken"),
        (
            json!({ "launchType": "EC2" }),
            "InvalidParameterException",
            "No Container Instances were found in your cluster.",
        ),
        (
            json!({ "capacityProviderStrategy": spot }),
            "InvalidParameterException",
            "Specifying both a launch type",
        ),
        (json!({ "platformVersion": "1.3.0" }), "PlatformUnknownException", "does not exist"),
        (
            json!({ "placementConstraints": [{}] }),
            "InvalidParameterException",
            "Placement constraints are not supported",
        ),
        (
            json!({ "placementStrategy": [{}] }),
            "InvalidParameterException",
            "Placement strategies are not supported",
        ),
        (json!({ "propagateTags": "SERVICE" }), "InvalidParameterException", "TASK_DEFINITION only"),
        (json!({ "enableExecuteCommand": true }), "InvalidParameterException", "taskRoleArn"),
        (
            json!({ "tags": [{ "key": "aws:x", "value": "" }] }),
            "InvalidParameterException",
            "reserved prefix",
        ),
        (
            json!({ "tags": [{ "key": "coracle.isolation", "value": "none" }] }),
            "InvalidParameterException",
            "must be 'container' or 'microvm'",
        ),
        (
            json!({ "networkConfiguration": null }),
            "InvalidParameterException",
            "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
        ),
        (network(json!([]), json!([])), "InvalidParameterException", "subnets can not be empty."),
        (
            network(json!(["subnet-1"]), json!([])),
            "InvalidParameterException",
            "Error retrieving subnet information for [subnet-1]: The subnet ID 'subnet-1' does not exist (ErrorCode: \
             InvalidSubnetID.NotFound)",
        ),
        (
            network(json!([SUBNET]), json!(["sg-1"])),
            "InvalidParameterException",
            "Error retrieving security group information for [sg-1]: The security group 'sg-1' does not exist (ErrorCode: \
             InvalidGroup.NotFound)",
        ),
        (
            network(json!([SUBNET]), json!([GROUP, GROUP, GROUP, GROUP, GROUP, GROUP])),
            "InvalidParameterException",
            "at most 5",
        ),
        (
            overrides(json!({ "name": "x" })),
            "InvalidParameterException",
            "Override for container named x is not a container in the TaskDefinition.",
        ),
        (
            overrides(json!({ "name": "app", "command": ["x".repeat(9000)] })),
            "InvalidParameterException",
            "Container Overrides length must be at most 8192",
        ),
        (
            overrides(json!({ "name": "app", "memory": 1024 })),
            "InvalidParameterException",
            "greater than for the task",
        ),
        (
            overrides(json!({ "name": "app", "cpu": 512 })),
            "InvalidParameterException",
            "The sum of all container 'cpu'",
        ),
        (overrides(json!({ "name": "app", "memory": -1 })), "InvalidParameterException", "at least 6 MiB"),
        (
            overrides(json!({ "name": "app", "environment": [{ "value": "x" }] })),
            "InvalidParameterException",
            "names",
        ),
        (
            json!({ "overrides": { "memory": "4096" } }),
            "InvalidParameterException",
            "No Fargate configuration exists",
        ),
        (json!({ "overrides": { "cpu": "x" } }), "InvalidParameterException", "Invalid 'cpu' setting"),
        (json!({ "overrides": { "taskRoleArn": "a b" } }), "InvalidParameterException", "Role is not valid"),
        (
            json!({ "overrides": { "ephemeralStorage": { "sizeInGiB": -1 } } }),
            "InvalidParameterException",
            "ephemeral storage",
        ),
    ];
    for (changes, code, text) in cases {
        assert_error(call!(f, run_task, run_request(changes)), code, text);
    }
    assert_eq!((count(&f, TASKS).await, count(&f, PENDING).await), (0, 0));
}

#[tokio::test]
async fn a_definition_and_overrides_become_what_a_host_runs() {
    let f = fixture().await;
    let app = container(json!({
        "cpu": 64, "memory": 256, "memoryReservation": 128,
        "entryPoint": ["/entry"], "command": ["serve"], "workingDirectory": "/srv", "user": "web:web",
        "environment": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }],
        "dependsOn": [{ "containerName": "init", "condition": "SUCCESS" }],
        "healthCheck": { "command": ["CMD-SHELL", "curl localhost"], "startPeriod": 7 },
        "startTimeout": 30, "stopTimeout": 600,
        "restartPolicy": { "enabled": true, "ignoredExitCodes": [0] },
        "ulimits": [{ "name": "memlock", "softLimit": 5, "hardLimit": -1 }],
        "linuxParameters": { "initProcessEnabled": true, "sharedMemorySize": 64 },
        "readonlyRootFilesystem": true, "interactive": true, "pseudoTerminal": true,
        "mountPoints": [{ "sourceVolume": "data", "containerPath": "/data", "readOnly": true }],
        "volumesFrom": [{ "sourceContainer": "init" }],
        "systemControls": [{ "namespace": "net.core.somaxconn", "value": "9" }],
        "portMappings": [{ "containerPort": 80, "name": "http" }, { "containerPortRange": "90-91", "protocol": "udp" }],
        "extraHosts": [{ "hostname": "db", "ipAddress": "10.0.0.1" }],
        "dockerLabels": { "x": "y" },
        "logConfiguration": { "logDriver": "awslogs", "options": {
            "awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "web",
            "awslogs-create-group": "true", "mode": "non-blocking", "max-buffer-size": "1m",
        } },
    }));
    let mut init = container(json!({ "name": "init", "essential": false, "image": "busybox" }));
    init["restartPolicy"] = json!({ "enabled": false });
    let full = definition(json!({
        "cpu": "512", "memory": "1024", "pidMode": "task",
        "executionRoleArn": "arn:aws:iam::123456789012:role/r",
        "runtimePlatform": { "cpuArchitecture": "ARM64" },
        "ephemeralStorage": { "sizeInGiB": 50 },
        "volumes": [{ "name": "data" }],
        "containerDefinitions": [app, init],
    }));
    call!(f, register_task_definition, full).unwrap();
    let run = run_request(json!({ "overrides": {
        "cpu": "1 vCPU", "memory": "2 GB", "ephemeralStorage": { "sizeInGiB": 60 },
        "containerOverrides": [{
            "name": "app", "command": ["migrate"], "cpu": 128, "memory": 512, "memoryReservation": 300,
            "environment": [{ "name": "A", "value": "override" }, { "name": "C", "value": "3" }],
        }],
    } }));
    let task = call!(f, run_task, run).unwrap().tasks.unwrap().remove(0);
    assert_eq!((task.cpu.as_deref(), task.memory.as_deref()), (Some("1024"), Some("2048")));
    assert_eq!(task.overrides.as_ref().unwrap().container_overrides.as_ref().unwrap().len(), 2);
    let container = &task.containers.as_ref().unwrap()[0];
    assert_eq!(
        (container.memory.as_deref(), container.memory_reservation.as_deref()),
        (Some("512"), Some("300"))
    );
    let spec = intent(&f, task.task_arn.as_deref().unwrap()).await.spec;
    assert_eq!((spec.cpu_units, spec.memory_mib, spec.ephemeral_storage_gib), (1024, 2048, 60));
    assert_eq!((spec.architecture.as_str(), spec.share_pid_namespace), ("arm64", true));
    assert_eq!((spec.family.as_str(), spec.revision, spec.volumes[0].name.as_str()), ("web", 1, "data"));
    let app = &spec.containers[0];
    assert_eq!((app.cpu_shares, app.memory_mib, app.memory_reservation_mib), (128, Some(512), Some(300)));
    assert_eq!(app.entry_point.as_deref(), Some(&["/entry".to_owned()][..]));
    assert_eq!(app.command.as_deref(), Some(&["migrate".to_owned()][..]));
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(app.environment, [pair("B", "2"), pair("A", "override"), pair("C", "3")]);
    assert_eq!(
        (app.depends_on[0].container.as_str(), app.depends_on[0].condition),
        ("init", DependencyCondition::Success)
    );
    let check = app.health_check.as_ref().unwrap();
    assert_eq!(check.command, ["/bin/sh", "-c", "curl localhost"]);
    assert_eq!(
        (check.interval_secs, check.timeout_secs, check.retries, check.start_period_secs),
        (30, 5, 3, 7)
    );
    assert_eq!((app.start_timeout_secs, app.stop_timeout_secs), (Some(30), 600));
    assert_eq!(app.restart_policy.as_ref().unwrap().attempt_period_secs, 300);
    assert_eq!((app.ulimits[0].soft, app.ulimits[0].hard), (5, u64::MAX));
    assert!(app.linux.init_process && app.readonly_root_filesystem && app.stdin_open && app.tty);
    assert_eq!(app.linux.shared_memory_mib, Some(64));
    assert!(app.mounts[0].read_only);
    assert_eq!(app.volumes_from[0].container, "init");
    assert_eq!(app.sysctls, [pair("net.core.somaxconn", "9")]);
    let ports: Vec<(u16, Protocol)> = app.ports.iter().map(|p| (p.container_port, p.protocol)).collect();
    assert_eq!(ports, [(80, Protocol::Tcp), (90, Protocol::Udp), (91, Protocol::Udp)]);
    assert_eq!(
        (app.extra_hosts.clone(), app.docker_labels.clone()),
        (vec![pair("db", "10.0.0.1")], vec![pair("x", "y")])
    );
    let log = app.log.as_ref().unwrap();
    let id = task.task_arn.as_deref().unwrap().rsplit('/').next().unwrap();
    assert_eq!((log.group.as_str(), log.stream.as_str()), ("/ecs/web", format!("web/app/{id}").as_str()));
    assert!(log.create_group);
    assert_eq!(log.mode, LogMode::NonBlocking { max_buffer_bytes: 1 << 20 });
    let init = &spec.containers[1];
    assert_eq!((init.essential, init.stop_timeout_secs, init.restart_policy.clone()), (false, 30, None));
    assert!(init.health_check.is_none() && init.log.is_none() && init.command.is_none());
}

#[tokio::test]
async fn a_task_that_needs_a_kernel_of_its_own_gets_one_or_is_refused() {
    let f = fixture().await;
    let privileged = |tags: Value| {
        let app = container(json!({ "privileged": true, "linuxParameters": {
            "devices": [{ "hostPath": "/dev/fuse", "permissions": ["read", "write"] }],
        } }));
        definition(json!({ "containerDefinitions": [app], "tags": tags }))
    };
    let tag = |isolation: &str| json!([{ "key": "coracle.isolation", "value": isolation }]);
    for refused in [json!([]), tag("container")] {
        let result = call!(f, register_task_definition, privileged(refused));
        assert_error(result, "ClientException", "the tag coracle.isolation=microvm");
    }
    let unknown = call!(f, register_task_definition, privileged(tag("vm")));
    assert_error(unknown, "InvalidParameterException", "must be 'container' or 'microvm'");
    call!(f, register_task_definition, privileged(tag("microvm"))).unwrap();
    let refused = call!(f, run_task, run_request(json!({ "tags": tag("container") })));
    assert_error(refused, "InvalidParameterException", "requires that the 'privileged' setting be 'false'");
    let task = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0);
    let spec = intent(&f, &task.task_arn.unwrap()).await.spec;
    assert_eq!(spec.isolation, model::spec::Isolation::Microvm);
    let app = &spec.containers[0];
    assert!(app.privileged);
    let fuse = &app.linux.devices[0];
    assert_eq!((fuse.host_path.as_str(), fuse.container_path.as_str()), ("/dev/fuse", "/dev/fuse"));
    assert!(fuse.read && fuse.write && !fuse.mknod);
}

#[tokio::test]
async fn a_client_token_stands_for_one_request() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let request = run_request(json!({ "clientToken": "token/1", "count": 2 }));
    let arns = |out: aws_api::ecs::RunTaskResponse| -> Vec<String> {
        out.tasks.unwrap().into_iter().filter_map(|task| task.task_arn).collect()
    };
    let first = arns(call!(f, run_task, request.clone()).unwrap());
    assert_eq!(arns(call!(f, run_task, request.clone()).unwrap()), first);
    let error = call!(f, run_task, run_request(json!({ "clientToken": "token/1", "count": 3 }))).unwrap_err();
    assert_eq!(error.code, "ConflictException");
    assert_eq!(error.fields["resourceIds"], json!(first));
    // Of another cluster it is another token.
    call!(f, create_cluster, json!({ "clusterName": "b" })).unwrap();
    let other = run_request(json!({ "clientToken": "token/1", "cluster": "b" }));
    assert_eq!(arns(call!(f, run_task, other).unwrap()).len(), 1);
    assert_eq!(count(&f, TASKS).await, 3);
    f.ecs.clock.advance(24 * 60 * 60 * 1000);
    let later = arns(call!(f, run_task, request).unwrap());
    assert!(later.iter().all(|arn| !first.contains(arn)));
    f.ecs.clock.advance(24 * 60 * 60 * 1000);
    super::sweep(&f).await;
    assert_eq!(count(&f, crate::keys::CLIENT_TOKENS).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_requests_with_one_token_start_tasks_once() {
    let f = std::sync::Arc::new(fixture().await);
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let f = f.clone();
        set.spawn(async move {
            let out = call!(f, run_task, run_request(json!({ "clientToken": "t" }))).unwrap();
            out.tasks.unwrap().remove(0).task_arn.unwrap()
        });
    }
    let arns = set.join_all().await;
    assert!(arns.iter().all(|arn| *arn == arns[0]));
    assert_eq!(count(&f, TASKS).await, 1);
}

#[tokio::test]
async fn a_task_can_be_stopped_before_it_is_placed() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let task = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0);
    let arn = task.task_arn.unwrap();
    // As the reconciler, which has seen the task.
    f.ecs.store.commit(Txn::new().delete(path(&f, &arn).pending())).await.unwrap();
    f.ecs.clock.advance(5000);
    let stopped = call!(f, stop_task, json!({ "task": arn, "reason": "enough" })).unwrap().task.unwrap();
    assert_eq!(
        (stopped.desired_status.as_deref(), stopped.last_status.as_deref()),
        (Some("STOPPED"), Some("PROVISIONING"))
    );
    assert_eq!(
        (stopped.stop_code.as_deref(), stopped.stopped_reason.as_deref()),
        (Some("UserInitiated"), Some("enough"))
    );
    assert_eq!(stopped.stopping_at.unwrap().as_millis(), 1_700_000_005_000);
    assert_eq!(stopped.version, Some(2));
    assert_eq!(intent(&f, &arn).await.desired, DesiredStatus::Stopped);
    assert_eq!(count(&f, PENDING).await, 1, "the reconciler is to look at it again");
    // Again, by id, it is the same, first reason included.
    let id = arn.rsplit('/').next().unwrap();
    let again = call!(f, stop_task, json!({ "task": id })).unwrap().task.unwrap();
    assert_eq!(again, stopped);
    for (input, code, text) in [
        (
            json!({ "task": "0".repeat(32) }),
            "InvalidParameterException",
            "The referenced task was not found.",
        ),
        (json!({ "task": "x" }), "InvalidParameterException", "taskId length should be one of [32,36]"),
        (json!({ "task": id, "cluster": "gone" }), "ClusterNotFoundException", "Cluster not found."),
        (json!({ "task": id, "reason": "x".repeat(1025) }), "InvalidParameterException", "reason"),
    ] {
        assert_error(call!(f, stop_task, input), code, text);
    }
    // One that ended by itself is not asked to stop.
    let task = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0);
    let arn = task.task_arn.unwrap();
    refuse(&f, &arn).await;
    let ended = call!(f, stop_task, json!({ "task": arn })).unwrap().task.unwrap();
    assert_eq!(
        (ended.last_status.as_deref(), ended.stop_code.as_deref()),
        (Some("STOPPED"), Some("TaskFailedToStart"))
    );
    assert_eq!(intent(&f, &arn).await.stop, None);
}

#[tokio::test]
async fn describe_names_what_is_missing() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let arn = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0).task_arn.unwrap();
    let id = arn.rsplit('/').next().unwrap();
    let missing = "f".repeat(32);
    let out = call!(f, describe_tasks, json!({ "tasks": [missing, arn, id, missing] })).unwrap();
    assert_eq!(out.tasks.unwrap().len(), 1);
    let failures = serde_json::to_value(out.failures.unwrap()).unwrap();
    let missing = format!("arn:aws:ecs:eu-central-1:123456789012:task/default/{missing}");
    assert_eq!(failures, json!([{ "arn": missing, "reason": "MISSING" }]));
    for (input, code, text) in [
        (json!({ "tasks": [] }), "InvalidParameterException", "Tasks cannot be empty."),
        (json!({ "tasks": vec![id; 101] }), "InvalidParameterException", "more than 100"),
        (json!({ "tasks": ["None"] }), "InvalidParameterException", "taskId length should be one of [32,36]"),
        (json!({ "tasks": [id], "cluster": "gone" }), "ClusterNotFoundException", "Cluster not found."),
        (
            json!({ "tasks": ["arn:aws:ecs:eu-central-1:999999999999:task/default/x"] }),
            "InvalidParameterException",
            "AccountIDs mismatch",
        ),
    ] {
        assert_error(call!(f, describe_tasks, input), code, text);
    }
}

#[tokio::test]
async fn lists_of_tasks_filter_and_page() {
    let f = fixture().await;
    for family in ["web", "api"] {
        call!(f, register_task_definition, definition(json!({ "family": family }))).unwrap();
    }
    let mut arns = Vec::new();
    for (family, by, count) in [("web", "ann", 3), ("api", "bob", 2)] {
        let run = run_request(json!({ "taskDefinition": family, "startedBy": by, "count": count }));
        let tasks = call!(f, run_task, run).unwrap().tasks.unwrap();
        arns.push(tasks.into_iter().filter_map(|task| task.task_arn).collect::<Vec<_>>());
    }
    call!(f, stop_task, json!({ "task": arns[0][0] })).unwrap();
    refuse(&f, &arns[0][1]).await;
    for (input, want) in [
        (json!({}), 3),
        (json!({ "desiredStatus": "RUNNING" }), 3),
        (json!({ "desiredStatus": "STOPPED" }), 2),
        (json!({ "desiredStatus": "PENDING" }), 0),
        (json!({ "family": "web" }), 1),
        (json!({ "family": "web", "desiredStatus": "STOPPED" }), 2),
        (json!({ "family": "we" }), 0),
        (json!({ "startedBy": "bob" }), 2),
        (json!({ "startedBy": "ann", "desiredStatus": "STOPPED" }), 2),
        (json!({ "launchType": "FARGATE" }), 3),
        (json!({ "launchType": "EC2" }), 0),
    ] {
        for size in [1, 2, 100] {
            let (mut seen, mut token) = (Vec::new(), Value::Null);
            loop {
                let mut page = input.clone();
                page["maxResults"] = json!(size);
                page["nextToken"] = token;
                let out = call!(f, list_tasks, page).unwrap();
                seen.extend(out.task_arns.unwrap());
                match out.next_token {
                    Some(next) => token = json!(next),
                    None => break,
                }
            }
            assert_eq!(seen.len(), want, "{input} by {size}");
        }
    }
    for (input, code, text) in [
        (json!({ "startedBy": "x", "family": "web" }), "InvalidParameterException", "startedBy"),
        (json!({ "serviceName": "x" }), "ServiceNotFoundException", "Service not found."),
        (json!({ "containerInstance": "x" }), "InvalidParameterException", "Container instance"),
        (json!({ "cluster": "gone" }), "ClusterNotFoundException", "Cluster not found."),
        (json!({ "maxResults": 101 }), "InvalidParameterException", "maxResults"),
        (json!({ "nextToken": "x" }), "InvalidParameterException", "Invalid token."),
    ] {
        assert_error(call!(f, list_tasks, input), code, text);
    }
}

#[tokio::test]
async fn without_launch_type_the_clusters_strategy_decides() {
    let f = fixture().await;
    call!(f, register_task_definition, definition(json!({}))).unwrap();
    let task =
        call!(f, run_task, run_request(json!({ "launchType": null }))).unwrap().tasks.unwrap().remove(0);
    assert_eq!((task.launch_type.as_deref(), task.capacity_provider_name), (Some("FARGATE"), None));
    let providers = json!({
        "cluster": "default",
        "capacityProviders": ["FARGATE", "FARGATE_SPOT"],
        "defaultCapacityProviderStrategy": [
            { "capacityProvider": "FARGATE", "weight": 1, "base": 1 },
            { "capacityProvider": "FARGATE_SPOT", "weight": 3 },
        ],
    });
    call!(f, put_cluster_capacity_providers, providers).unwrap();
    let tasks =
        call!(f, run_task, run_request(json!({ "launchType": null, "count": 5 }))).unwrap().tasks.unwrap();
    let spot = tasks.iter().filter(|t| t.capacity_provider_name.as_deref() == Some("FARGATE_SPOT")).count();
    assert_eq!((tasks.len(), spot), (5, 3));
}
