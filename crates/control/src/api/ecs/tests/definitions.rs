//! Task definitions: register, describe, list, deregister, delete.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{assert_error, call, container, definition, fixture, run_request};

const ARN: &str = "arn:aws:ecs:eu-central-1:123456789012:task-definition/";

#[tokio::test]
async fn a_registered_definition_has_awss_defaults() {
    let f = fixture().await;
    let given = definition(json!({
        "cpu": ".25 vCPU",
        "memory": "0.5 GB",
        "executionRoleArn": "arn:aws:iam::123456789012:role/ecsTaskExecutionRole",
        "tags": [{ "key": "team", "value": "a" }],
        "volumes": [{ "name": "data" }],
        "containerDefinitions": [container(json!({
            "portMappings": [{ "containerPort": 80 }],
            "healthCheck": { "command": ["CMD-SHELL", "true"] },
            "logConfiguration": { "logDriver": "awslogs", "options": {
                "awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "ecs",
            } },
        }))],
    }));
    let registered = call!(f, register_task_definition, given).unwrap();
    assert_eq!(registered.tags.unwrap().len(), 1);
    let shown = registered.task_definition.unwrap();
    let json = serde_json::to_value(&shown).unwrap();
    assert_eq!(json["taskDefinitionArn"], format!("{ARN}web:1"));
    assert_eq!((&json["cpu"], &json["memory"]), (&json!("256"), &json!("512")));
    assert_eq!((&json["revision"], &json["status"]), (&json!(1), &json!("ACTIVE")));
    assert_eq!(json["compatibilities"], json!(["EC2", "FARGATE"]));
    assert_eq!(json["registeredBy"], "arn:aws:iam::123456789012:root");
    assert_eq!(json["volumes"], json!([{ "name": "data", "host": {} }]));
    assert_eq!(json["placementConstraints"], json!([]));
    assert!(json["registeredAt"].is_number());
    assert!(
        json["requiresAttributes"]
            .as_array()
            .unwrap()
            .contains(&json!({ "name": "ecs.capability.task-eni" }))
    );
    let container = &json["containerDefinitions"][0];
    assert_eq!(container["cpu"], 0);
    assert_eq!(container["essential"], true);
    assert_eq!(
        container["portMappings"],
        json!([{ "containerPort": 80, "hostPort": 80, "protocol": "tcp" }])
    );
    for empty in ["environment", "mountPoints", "volumesFrom", "systemControls"] {
        assert_eq!(container[empty], json!([]), "{empty}");
    }
    let check = &container["healthCheck"];
    assert_eq!(
        (&check["interval"], &check["timeout"], &check["retries"]),
        (&json!(30), &json!(5), &json!(3))
    );

    let described = call!(f, describe_task_definition, json!({ "taskDefinition": "web" })).unwrap();
    assert_eq!(described.task_definition.unwrap(), shown);
    assert_eq!(described.tags.unwrap(), []);
    let with_tags = json!({ "taskDefinition": format!("{ARN}web:1"), "include": ["TAGS"] });
    assert_eq!(call!(f, describe_task_definition, with_tags).unwrap().tags.unwrap().len(), 1);
}

#[tokio::test]
async fn describe_without_a_number_finds_the_latest_active() {
    let f = fixture().await;
    for _ in 0..7 {
        call!(f, register_task_definition, definition(json!({}))).unwrap();
    }
    for revision in 2..=7 {
        let name = format!("web:{revision}");
        let out = call!(f, deregister_task_definition, json!({ "taskDefinition": name })).unwrap();
        let out = out.task_definition.unwrap();
        assert_eq!(out.status.as_deref(), Some("INACTIVE"));
        assert!(out.deregistered_at.is_some());
    }
    let latest = call!(f, describe_task_definition, json!({ "taskDefinition": "web" })).unwrap();
    assert_eq!(latest.task_definition.unwrap().revision, Some(1));
    let inactive = call!(f, describe_task_definition, json!({ "taskDefinition": "web:7" })).unwrap();
    assert_eq!(inactive.task_definition.unwrap().status.as_deref(), Some("INACTIVE"));
    call!(f, deregister_task_definition, json!({ "taskDefinition": "web:1" })).unwrap();
    for name in ["web", "web:8", "other", "we b", "web/x"] {
        assert_error(
            call!(f, describe_task_definition, json!({ "taskDefinition": name })),
            "ClientException",
            "Unable to describe task definition.",
        );
    }
    let missing = call!(f, deregister_task_definition, json!({ "taskDefinition": "web" }));
    assert_error(missing, "ClientException", "Revision is missing.");
}

#[tokio::test]
async fn parallel_registrations_get_distinct_revisions_without_gaps() {
    let f = fixture().await;
    let f = std::sync::Arc::new(f);
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let f = f.clone();
        set.spawn(async move {
            let out = call!(f, register_task_definition, definition(json!({}))).unwrap();
            out.task_definition.unwrap().revision.unwrap()
        });
    }
    let revisions: BTreeSet<i32> = set.join_all().await.into_iter().collect();
    assert_eq!(revisions, (1..=40).collect());
}

#[tokio::test]
async fn deleted_revisions_go_when_unused_and_their_numbers_never_return() {
    let f = fixture().await;
    for _ in 0..3 {
        call!(f, register_task_definition, definition(json!({}))).unwrap();
    }
    let task = call!(f, run_task, run_request(json!({ "taskDefinition": "web:2" }))).unwrap().tasks.unwrap();
    for revision in [2, 3] {
        let name = format!("web:{revision}");
        call!(f, deregister_task_definition, json!({ "taskDefinition": name })).unwrap();
    }
    let names = ["web:1", "web:2", "web:3", "web:9", "web", "web:x"];
    let out = call!(f, delete_task_definitions, json!({ "taskDefinitions": names })).unwrap();
    let deleted = out.task_definitions.unwrap();
    assert_eq!(deleted.len(), 2);
    assert_eq!(deleted[0].status.as_deref(), Some("DELETE_IN_PROGRESS"));
    assert!(deleted[0].delete_requested_at.is_some());
    let reasons: Vec<String> = out.failures.unwrap().into_iter().filter_map(|f| f.reason).collect();
    assert!(reasons[0].contains("still in ACTIVE status"));
    assert!(reasons[1].contains("does not exist"));
    assert!(reasons[2].contains("identifier is invalid") && reasons[3].contains("identifier is invalid"));
    let listed = json!({ "status": "DELETE_IN_PROGRESS" });
    assert_eq!(
        call!(f, list_task_definitions, listed.clone()).unwrap().task_definition_arns.unwrap().len(),
        2
    );

    super::sweep(&f).await;
    let left = call!(f, list_task_definitions, listed.clone()).unwrap().task_definition_arns.unwrap();
    assert_eq!(left, [format!("{ARN}web:2")], "a task still runs revision 2");
    super::tasks::refuse(&f, task[0].task_arn.as_deref().unwrap()).await;
    super::sweep(&f).await;
    assert_eq!(call!(f, list_task_definitions, listed).unwrap().task_definition_arns.unwrap().len(), 0);
    assert_error(
        call!(f, describe_task_definition, json!({ "taskDefinition": "web:3" })),
        "ClientException",
        "Unable to describe",
    );
    // All gone: the family is no more listed, and goes on counting.
    call!(f, deregister_task_definition, json!({ "taskDefinition": "web:1" })).unwrap();
    call!(f, delete_task_definitions, json!({ "taskDefinitions": ["web:1"] })).unwrap();
    super::sweep(&f).await;
    let families = call!(f, list_task_definition_families, json!({})).unwrap().families.unwrap();
    assert_eq!(families, Vec::<String>::new());
    let next = call!(f, register_task_definition, definition(json!({}))).unwrap().task_definition.unwrap();
    assert_eq!(next.revision, Some(4));
    for (names, text) in [(vec![], "greater than 0"), (vec!["a:1"; 11], "cannot exceed 10")] {
        let input = json!({ "taskDefinitions": names });
        assert_error(call!(f, delete_task_definitions, input), "InvalidParameterException", text);
    }
}

#[tokio::test]
async fn lists_filter_sort_and_page() {
    let f = fixture().await;
    for family in ["api", "web", "web", "web", "web-admin"] {
        call!(f, register_task_definition, definition(json!({ "family": family }))).unwrap();
    }
    call!(f, deregister_task_definition, json!({ "taskDefinition": "web:2" })).unwrap();
    call!(f, deregister_task_definition, json!({ "taskDefinition": "api:1" })).unwrap();
    for (input, want) in [
        (json!({}), vec!["web-admin:1", "web:1", "web:3"]),
        (json!({ "sort": "DESC" }), vec!["web:3", "web:1", "web-admin:1"]),
        (json!({ "familyPrefix": "web" }), vec!["web:1", "web:3"]),
        (json!({ "familyPrefix": "we" }), vec![]),
        (json!({ "familyPrefix": "w/e" }), vec![]),
        (json!({ "status": "INACTIVE" }), vec!["api:1", "web:2"]),
    ] {
        for size in [1, 2, 100] {
            let (mut seen, mut token) = (Vec::new(), Value::Null);
            loop {
                let mut page = input.clone();
                page["maxResults"] = json!(size);
                page["nextToken"] = token;
                let out = call!(f, list_task_definitions, page).unwrap();
                seen.extend(out.task_definition_arns.unwrap());
                match out.next_token {
                    Some(next) => token = json!(next),
                    None => break,
                }
            }
            let want: Vec<String> = want.iter().map(|name| format!("{ARN}{name}")).collect();
            assert_eq!(seen, want, "{input} by {size}");
        }
    }
    for (input, want) in [
        (json!({}), vec!["api", "web", "web-admin"]),
        (json!({ "familyPrefix": "we" }), vec!["web", "web-admin"]),
        (json!({ "status": "ACTIVE" }), vec!["web", "web-admin"]),
        (json!({ "status": "INACTIVE" }), vec!["api"]),
        (json!({ "familyPrefix": "../" }), vec![]),
    ] {
        let out = call!(f, list_task_definition_families, input.clone()).unwrap();
        assert_eq!(out.families.unwrap(), want, "{input}");
    }
    let first = call!(f, list_task_definition_families, json!({ "maxResults": 2 })).unwrap();
    let rest = json!({ "maxResults": 2, "nextToken": first.next_token });
    assert_eq!(call!(f, list_task_definition_families, rest).unwrap().families.unwrap(), ["web-admin"]);
}

#[tokio::test]
async fn a_definition_that_fargate_cannot_run_is_registered_and_not_run() {
    let f = fixture().await;
    let bridge = definition(json!({ "requiresCompatibilities": null, "networkMode": "bridge" }));
    let out = call!(f, register_task_definition, bridge).unwrap().task_definition.unwrap();
    assert_eq!(out.compatibilities.unwrap(), ["EXTERNAL", "EC2"]);
    assert_error(
        call!(f, run_task, run_request(json!({}))),
        "InvalidParameterException",
        "Task definition does not support launch_type FARGATE.",
    );
}
