//! The rules of task definitions, one row each.

use serde_json::{Value, json};

use model::spec::Isolation;

use super::{container, definition, document, document_for};

const ROLE: &str = "arn:aws:iam::123456789012:role/ecsTaskExecutionRole";

fn with(changes: Value) -> Value {
    definition(json!({ "containerDefinitions": [container(changes)] }))
}

fn two(first: Value, second: Value) -> Value {
    let mut second = container(second);
    second["name"] = json!("side");
    definition(json!({ "containerDefinitions": [container(first), second] }))
}

fn logs(driver: &str, options: Value) -> Value {
    json!({ "logConfiguration": { "logDriver": driver, "options": options } })
}

#[test]
fn what_a_definition_may_not_be() {
    let awslogs = json!({ "awslogs-group": "g", "awslogs-region": "r", "awslogs-stream-prefix": "p" });
    let ecr = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:1";
    let many: Vec<Value> = (0..11).map(|i| container(json!({ "name": format!("c{i}") }))).collect();
    let cases = [
        (definition(json!({ "family": "" })), "Family can not be blank."),
        (definition(json!({ "family": "a/b" })), "Family contains invalid characters."),
        (definition(json!({ "family": "a".repeat(256) })), "Family contains invalid characters."),
        (definition(json!({ "containerDefinitions": [] })), "Container list cannot be empty."),
        (definition(json!({ "containerDefinitions": many })), "Too many containers."),
        (with(json!({ "command": ["x".repeat(70_000)] })), "Max allowed length is '65536' bytes."),
        // Fargate's shape.
        (definition(json!({ "networkMode": null })), "Fargate only supports network mode ‘awsvpc’."),
        (definition(json!({ "networkMode": "bridge" })), "Fargate only supports network mode ‘awsvpc’."),
        (definition(json!({ "cpu": null })), "Fargate requires that 'cpu' be defined at the task level."),
        (
            definition(json!({ "memory": null })),
            "At least one of 'memory' or 'memoryReservation' must be specified.",
        ),
        (
            definition(
                json!({ "memory": null, "containerDefinitions": [container(json!({ "memory": 64 }))] }),
            ),
            "Fargate requires that 'memory' be defined at the task level.",
        ),
        (definition(json!({ "cpu": "x" })), "Invalid 'cpu' setting for task."),
        (definition(json!({ "memory": "lots" })), "Invalid 'memory' setting for task."),
        (
            definition(json!({ "memory": "4096" })),
            "No Fargate configuration exists for given values: 256 CPU, 4096 memory. See the Amazon ECS documentation for \
             the valid values.",
        ),
        (
            definition(json!({ "pidMode": "host" })),
            "do not support pidMode 'host'. The supported value for pidMode is 'task'.",
        ),
        (definition(json!({ "ipcMode": "task" })), "do not support ipcMode 'task'"),
        (
            definition(json!({ "placementConstraints": [{ "type": "memberOf", "expression": "x" }] })),
            "do not support placementConstraints",
        ),
        (
            definition(json!({ "runtimePlatform": { "operatingSystemFamily": "WINDOWS_SERVER_2022_CORE" } })),
            "Linux containers only",
        ),
        (definition(json!({ "ephemeralStorage": { "sizeInGiB": 0 } })), "ephemeral storage size"),
        (definition(json!({ "taskRoleArn": "arn:aws:s3:::x" })), "Role is not valid"),
        (definition(json!({ "executionRoleArn": "a b" })), "Role is not valid"),
        (
            definition(json!({ "proxyConfiguration": { "containerName": "app" } })),
            "does not serve proxyConfiguration",
        ),
        (definition(json!({ "enableFaultInjection": true })), "does not serve fault injection"),
        // Names and images.
        (with(json!({ "name": null })), "Container.name should not be null or empty."),
        (with(json!({ "name": "a b" })), "Container.name contains invalid characters."),
        (
            two(json!({ "name": "side" }), json!({})),
            "Container names must be unique within a task definition.",
        ),
        (with(json!({ "image": "" })), "Container.image should not be null or empty."),
        (with(json!({ "image": "a b" })), "Container.image contains invalid characters."),
        (with(json!({ "image": "a@sha256:12" })), "Container.image contains invalid characters."),
        (with(json!({ "image": "a".repeat(256) })), "255 characters or less"),
        (with(json!({ "essential": false })), "Task definition doesn't have any essential container."),
        // Roles.
        (
            with(logs("awslogs", awslogs.clone())),
            "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
        ),
        (
            with(json!({ "image": ecr })),
            "Fargate requires task definition to have execution role ARN to support ECR images.",
        ),
        (
            with(json!({ "repositoryCredentials": { "credentialsParameter": "arn:x" } })),
            "you must also specify a value for 'executionRoleArn'",
        ),
        // Logs.
        (
            with(logs("syslog", json!({}))),
            "syslog is not a valid log driver. Must be one of [awslogs, splunk, awsfirelens]",
        ),
        (with(logs("splunk", json!({}))), "does not serve the log driver splunk yet"),
        (
            with(logs("awslogs", json!({}))),
            "Log driver awslogs requires options: awslogs-group, awslogs-region",
        ),
        (
            with(logs("awslogs", json!({ "awslogs-group": "g", "awslogs-region": "r" }))),
            "Fargate requires log configuration options to include awslogs-stream-prefix to support log driver awslogs.",
        ),
        // CPU and memory.
        (with(json!({ "cpu": -1 })), "'cpu' must be 0 or more"),
        (
            two(json!({ "cpu": 200 }), json!({ "cpu": 100 })),
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        ),
        (
            with(json!({ "memory": 513 })),
            "The 'memory' setting for container 'app' is greater than for the task.",
        ),
        (
            with(json!({ "memoryReservation": 513 })),
            "The 'memoryReservation' setting for container 'app' is greater",
        ),
        (two(json!({ "memory": 300 }), json!({ "memory": 300 })), "The sum of the memory"),
        (with(json!({ "memory": 4 })), "'memory' must be at least 6 MiB"),
        (
            with(json!({ "memory": 64, "memoryReservation": 128 })),
            "'memory' must be greater than or equal to 'memoryReservation'",
        ),
        // Dependencies.
        (
            with(json!({ "dependsOn": [{ "containerName": "x", "condition": "START" }] })),
            "because it does not exist",
        ),
        (
            two(json!({ "dependsOn": [{ "containerName": "side", "condition": "COMPLETE" }] }), json!({})),
            "SUCCESS or COMPLETE condition cannot be an essential container",
        ),
        (
            two(json!({ "dependsOn": [{ "containerName": "side", "condition": "HEALTHY" }] }), json!({})),
            "HEALTHY condition must have health check configured",
        ),
        (
            two(
                json!({ "dependsOn": [{ "containerName": "side", "condition": "START" }] }),
                json!({ "dependsOn": [{ "containerName": "app", "condition": "START" }] }),
            ),
            "There is a cycle in the dependencies",
        ),
        (
            with(json!({ "dependsOn": [{ "containerName": "app", "condition": "START" }] })),
            "There is a cycle",
        ),
        (
            with(json!({ "volumesFrom": [{ "sourceContainer": "x" }] })),
            "Invalid 'volumesFrom' setting. Unknown container: 'x'",
        ),
        (
            with(json!({ "volumesFrom": [{ "sourceContainer": "app" }] })),
            "There is a cycle at container 'app'",
        ),
        // Volumes and mounts.
        (
            with(json!({ "mountPoints": [{ "sourceVolume": "x", "containerPath": "/x" }] })),
            "Unknown volume 'x'.",
        ),
        (
            definition(json!({ "volumes": [{ "name": "v", "host": { "sourcePath": "/etc" } }] })),
            "Fargate compatible task definitions do not support sourcePath",
        ),
        (
            definition(json!({ "volumes": [{ "name": "v", "dockerVolumeConfiguration": {} }] })),
            "do not support dockerVolumeConfiguration",
        ),
        (
            definition(
                json!({ "volumes": [{ "name": "v", "efsVolumeConfiguration": { "fileSystemId": "fs-1" } }] }),
            ),
            "does not serve Amazon EFS volumes yet",
        ),
        (
            definition(json!({ "volumes": [{ "name": "v", "configuredAtLaunch": true }] })),
            "does not serve volumes configured at launch",
        ),
        (definition(json!({ "volumes": [{ "name": "v" }, { "name": "v" }] })), "Volume names must be unique"),
        (definition(json!({ "volumes": [{ "name": "../v" }] })), "Volume.name must have"),
        // Ports.
        (
            with(json!({ "portMappings": [{ "containerPort": 80, "hostPort": 8080 }] })),
            "When networkMode=awsvpc, the host ports and container ports in port mappings must match.",
        ),
        (with(json!({ "portMappings": [{ "containerPort": 0 }] })), "Invalid 'containerPort' setting"),
        (with(json!({ "portMappings": [{ "containerPort": 65536 }] })), "Invalid 'containerPort' setting"),
        (with(json!({ "portMappings": [{}] })), "Invalid 'containerPort' setting"),
        (
            two(
                json!({ "portMappings": [{ "containerPort": 80 }] }),
                json!({ "portMappings": [{ "containerPort": 80 }] }),
            ),
            "port 80 is used multiple times in task",
        ),
        (
            with(json!({ "portMappings": [{ "containerPortRange": "80-90" }, { "containerPort": 85 }] })),
            "port 85 is used multiple times in task",
        ),
        (
            with(json!({ "portMappings": [{ "containerPortRange": "90-80" }] })),
            "Invalid 'containerPortRange' setting",
        ),
        (with(json!({ "portMappings": [{ "containerPortRange": "1-60000" }] })), "at most 1000 ports"),
        (
            with(json!({ "portMappings": [{ "containerPortRange": "1-9", "containerPort": 3 }] })),
            "cannot specify both single port and port range",
        ),
        (
            with(json!({ "portMappings": [
                { "containerPort": 80, "name": "http" }, { "containerPort": 81, "name": "http" },
            ] })),
            "port mapping name 'http' is already used",
        ),
        (with(json!({ "portMappings": [{ "containerPort": 80, "name": "-x" }] })), "port mapping name '-x'"),
        // awsvpc.
        (with(json!({ "links": ["x"] })), "Links are not supported on container when networkMode=awsvpc"),
        (with(json!({ "hostname": "x" })), "hostname is not supported on container when networkMode=awsvpc"),
        (with(json!({ "dnsServers": ["1.1.1.1"] })), "DNS servers are not supported"),
        (with(json!({ "dnsSearchDomains": ["x"] })), "DNS search domains are not supported"),
        (with(json!({ "disableNetworking": true })), "Disable Networking is not supported"),
        (
            with(json!({ "extraHosts": [{ "hostname": "a b", "ipAddress": "1.1.1.1" }] })),
            "extraHosts is invalid",
        ),
        (with(json!({ "extraHosts": [{ "hostname": "a", "ipAddress": "1.1" }] })), "extraHosts is invalid"),
        // What a kernel of its own will allow, and what Fargate never has.
        (with(json!({ "privileged": true })), "Fargate requires that the 'privileged' setting be 'false'."),
        (with(json!({ "dockerSecurityOptions": ["x"] })), "do not support dockerSecurityOptions"),
        (
            with(json!({ "linuxParameters": { "devices": [{ "hostPath": "/dev/sda" }] } })),
            "do not support devices",
        ),
        (with(json!({ "linuxParameters": { "maxSwap": 1 } })), "do not support maxSwap"),
        (
            with(json!({ "resourceRequirements": [{ "type": "GPU", "value": "1" }] })),
            "GPU resource requirements",
        ),
        (with(json!({ "secrets": [{ "name": "x", "valueFrom": "arn:x" }] })), "no Secrets Manager"),
        (with(json!({ "environmentFiles": [{ "type": "s3", "value": "arn:x" }] })), "no Amazon S3"),
        (with(json!({ "firelensConfiguration": { "type": "fluentbit" } })), "does not serve FireLens"),
        // linuxParameters.
        (
            with(json!({ "linuxParameters": { "capabilities": { "add": ["CAP_NET_ADMIN"] } } })),
            "not a Linux capability",
        ),
        (with(json!({ "linuxParameters": { "sharedMemorySize": 0 } })), "'sharedMemorySize'"),
        (
            with(json!({ "linuxParameters": { "tmpfs": [{ "containerPath": "/x", "size": 0 }] } })),
            "size of a tmpfs",
        ),
        (
            with(
                json!({ "linuxParameters": { "tmpfs": [{ "containerPath": "/x", "size": 1, "mountOptions": ["remount"] }] } }),
            ),
            "mount option 'remount'",
        ),
        (
            with(json!({ "linuxParameters": { "tmpfs": [{ "containerPath": "/a/../..", "size": 1 }] } })),
            "without '..'",
        ),
        (
            with(json!({ "linuxParameters": { "tmpfs": [{ "containerPath": "/", "size": 1 }] } })),
            "not the root",
        ),
        // Processes.
        (with(json!({ "healthCheck": { "command": ["true"] } })), "must begin with CMD or CMD-SHELL"),
        (with(json!({ "healthCheck": { "command": ["CMD"] } })), "must begin with CMD or CMD-SHELL"),
        (
            with(json!({ "healthCheck": { "command": ["CMD", "x"], "interval": 4 } })),
            "'interval' must be between 5 and 300",
        ),
        (
            with(json!({ "healthCheck": { "command": ["CMD", "x"], "timeout": 61 } })),
            "'timeout' must be between 2 and 60",
        ),
        (
            with(json!({ "healthCheck": { "command": ["CMD", "x"], "retries": 0 } })),
            "'retries' must be between 1 and 10",
        ),
        (
            with(json!({ "healthCheck": { "command": ["CMD", "x"], "startPeriod": 301 } })),
            "'startPeriod' must be between 0 and 300",
        ),
        (with(json!({ "stopTimeout": -1 })), "'stopTimeout'"),
        (with(json!({ "stopTimeout": 86_401 })), "'stopTimeout'"),
        (
            with(json!({ "startTimeout": 1 })),
            "Granular start timeout on container 'app' must be at least 2 seconds.",
        ),
        (
            with(json!({ "restartPolicy": { "enabled": true, "restartAttemptPeriod": 59 } })),
            "must be between 60 and 1800",
        ),
        (
            with(json!({ "restartPolicy": { "enabled": true, "ignoredExitCodes": vec![0; 51] } })),
            "at most 50",
        ),
        (
            with(json!({ "restartPolicy": { "enabled": true, "ignoredExitCodes": [256] } })),
            "between 0 and 255",
        ),
        (
            with(json!({ "ulimits": [{ "name": "nofile", "softLimit": 2, "hardLimit": 1 }] })),
            "Soft limit exceeds hard limit for ulimit nofile",
        ),
        (
            with(json!({ "ulimits": [{ "name": "files", "softLimit": 1, "hardLimit": 1 }] })),
            "not an ulimit's name",
        ),
        (
            with(json!({ "systemControls": [{ "namespace": "kernel.panic", "value": "1" }] })),
            "not a namespaced kernel parameter",
        ),
        (
            with(json!({ "systemControls": [{ "namespace": "net.ipv4/../kernel.panic", "value": "1" }] })),
            "not a kernel parameter's name",
        ),
        (
            with(json!({ "systemControls": [{ "namespace": "net.core.somaxconn", "value": "" }] })),
            "is invalid",
        ),
        (
            with(json!({ "environment": [{ "name": "", "value": "x" }] })),
            "Environment variables must have names",
        ),
        (
            with(json!({ "environment": [{ "name": "A=B", "value": "x" }] })),
            "Environment variables must have names",
        ),
        (with(json!({ "environment": [{ "name": "A", "value": "x\u{0}y" }] })), "NUL"),
        (with(json!({ "command": ["x\u{0}y"] })), "NUL"),
        (with(json!({ "workingDirectory": "relative" })), "'workingDirectory' must be an absolute path"),
        (with(json!({ "user": "a:b:c" })), "'user'"),
    ];
    for (input, want) in cases {
        let error = document(input.clone()).expect_err(want);
        assert_eq!(error.code, "ClientException", "{want}");
        assert!(error.message.contains(want), "wanted {want:?} in {:?}", error.message);
    }
}

#[test]
fn what_a_kernel_of_the_tasks_own_allows() {
    let devices = |device: Value| with(json!({ "linuxParameters": { "devices": [device] } }));
    let cases = [
        with(json!({ "privileged": true })),
        devices(json!({ "hostPath": "/dev/fuse" })),
        devices(json!({
            "hostPath": "/dev/net/tun", "containerPath": "/dev/net/tun", "permissions": ["read", "write"],
        })),
        with(json!({ "systemControls": [
            { "namespace": "kernel.panic", "value": "1" }, { "namespace": "vm.swappiness", "value": "1" },
        ] })),
    ];
    for input in cases {
        let hint = "the tag coracle.isolation=microvm";
        let error = document(input.clone()).expect_err(hint);
        assert!(error.code == "ClientException" && error.message.contains(hint), "{error:?}");
        let document = document_for(input.clone(), Isolation::Microvm).unwrap();
        assert!(document.compatibilities.unwrap().contains(&"FARGATE".to_owned()), "{input}");
        // Another than Fargate might run it, but not here.
        let mut other = input.clone();
        other["requiresCompatibilities"] = json!(["EC2"]);
        let document = document_for(other, Isolation::Container).unwrap();
        assert_eq!(document.compatibilities.unwrap(), ["EC2"], "{input}");
    }
    for (input, want) in [
        (devices(json!({ "hostPath": "/etc/passwd" })), "'/etc/passwd' is not the path of a device"),
        (devices(json!({ "hostPath": "/dev/../x" })), "is not the path of a device"),
        (devices(json!({ "hostPath": "/dev/fuse", "containerPath": "/dev/shm/x" })), "'/dev/shm/x' is not"),
        (devices(json!({ "hostPath": "/dev/fuse", "permissions": ["all"] })), "'all' is not a permission"),
        (with(json!({ "systemControls": [{ "namespace": "", "value": "1" }] })), "not a kernel parameter"),
    ] {
        let error = document_for(input.clone(), Isolation::Microvm).expect_err(want);
        assert!(error.code == "ClientException" && error.message.contains(want), "{error:?}");
    }
}

#[test]
fn what_coracle_takes() {
    let awslogs = json!({ "awslogs-group": "g", "awslogs-region": "r", "awslogs-stream-prefix": "p" });
    let role = |mut definition: Value| {
        definition["executionRoleArn"] = json!(ROLE);
        definition
    };
    let cases = [
        definition(json!({})),
        definition(json!({ "requiresCompatibilities": ["EC2", "FARGATE"] })),
        definition(json!({ "cpu": "16 vCPU", "memory": "120 GB" })),
        definition(json!({ "pidMode": "task" })),
        definition(
            json!({ "runtimePlatform": { "operatingSystemFamily": "LINUX", "cpuArchitecture": "ARM64" } }),
        ),
        definition(json!({ "taskRoleArn": "short-name", "enableFaultInjection": false })),
        role(with(logs("awslogs", awslogs))),
        role(with(json!({ "image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:1" }))),
        role(with(json!({ "repositoryCredentials": { "credentialsParameter": "arn:x" } }))),
        with(json!({ "image": format!("localhost:5000/a/b@sha256:{}", "a".repeat(64)) })),
        // Beyond Fargate (docs/differences.md).
        definition(json!({ "ephemeralStorage": { "sizeInGiB": 1 } })),
        definition(json!({ "ephemeralStorage": { "sizeInGiB": 1000 } })),
        with(json!({ "stopTimeout": 3600 })),
        with(json!({ "stopTimeout": 0 })),
        with(json!({ "linuxParameters": {
            "capabilities": { "add": ["SYS_PTRACE", "NET_ADMIN", "ALL"], "drop": ["ALL"] },
            "initProcessEnabled": true,
            "sharedMemorySize": 128,
            "tmpfs": [{ "containerPath": "/run", "size": 16, "mountOptions": ["noexec", "mode=755"] }],
        } })),
        with(
            json!({ "extraHosts": [{ "hostname": "db", "ipAddress": "10.0.0.7" }, { "hostname": "db6", "ipAddress": "::1" }] }),
        ),
        with(json!({ "ulimits": [
            { "name": "nofile", "softLimit": 1024, "hardLimit": 4096 },
            { "name": "memlock", "softLimit": -1, "hardLimit": -1 },
        ] })),
        with(json!({ "systemControls": [
            { "namespace": "net.core.somaxconn", "value": "1024" },
            { "namespace": "kernel.shmmax", "value": "1" },
            { "namespace": "fs.mqueue.msg_max", "value": "10" },
        ] })),
        with(json!({ "healthCheck": { "command": ["NONE"] } })),
        with(json!({ "portMappings": [
            { "containerPort": 53, "protocol": "udp" },
            { "containerPort": 53, "protocol": "tcp", "name": "dns_1", "appProtocol": "http" },
            { "containerPortRange": "1000-1099" },
        ] })),
        two(
            json!({ "dependsOn": [{ "containerName": "side", "condition": "SUCCESS" }], "volumesFrom": [{ "sourceContainer": "side" }] }),
            json!({ "essential": false }),
        ),
        two(
            json!({ "dependsOn": [{ "containerName": "side", "condition": "HEALTHY" }] }),
            json!({ "healthCheck": { "command": ["CMD-SHELL", "true"] } }),
        ),
    ];
    for input in cases {
        let document = document(input.clone()).unwrap_or_else(|error| panic!("{error}: {input}"));
        assert!(document.compatibilities.unwrap().contains(&"FARGATE".to_owned()), "{input}");
    }
}

proptest::proptest! {
    /// Whatever a caller writes, the answer is a document or an error, and what is accepted compiles.
    #[test]
    fn strings_never_break_it(text in "\\PC{0,40}", cpu in -5i32..70_000) {
        let input = with(json!({
            "image": text, "user": text, "workingDirectory": text, "cpu": cpu,
            "portMappings": [{ "containerPortRange": text }],
            "environment": [{ "name": text, "value": text }],
            "logConfiguration": { "logDriver": "awslogs", "options": {
                "awslogs-group": text, "awslogs-region": text, "awslogs-datetime-format": text, "max-buffer-size": text,
            } },
        }));
        let _ = document(input);
        let _ = document(definition(json!({ "cpu": text, "memory": text, "family": text })));
    }
}
