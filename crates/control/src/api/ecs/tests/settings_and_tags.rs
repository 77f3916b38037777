//! Account settings and tags.

use model::spec::LogMode;
use serde_json::{Value, json};

use super::{assert_error, call, container, definition, fixture, run_request};
use crate::keys::TaskPath;

#[tokio::test]
async fn settings_hold_for_a_principal_the_account_or_by_default() {
    let mut f = fixture().await;
    let get = |out: &aws_api::ecs::ListAccountSettingsResponse, name: &str| {
        let settings = out.settings.clone().unwrap();
        settings.into_iter().find(|s| s.name.as_deref() == Some(name)).and_then(|s| s.value)
    };
    assert_eq!(call!(f, list_account_settings, json!({})).unwrap().settings.unwrap(), []);
    let insights = json!({ "name": "containerInsights", "effectiveSettings": true });
    let out = call!(f, list_account_settings, insights.clone()).unwrap();
    assert_eq!(get(&out, "containerInsights").as_deref(), Some("disabled"));
    let default = json!({ "name": "containerInsights", "value": "enhanced" });
    let put = call!(f, put_account_setting_default, default).unwrap().setting.unwrap();
    assert_eq!(put.principal_arn.as_deref(), Some("arn:aws:iam::123456789012:root"));

    f.caller.principal_arn = "arn:aws:iam::123456789012:user/ann".to_owned();
    let out = call!(f, list_account_settings, insights.clone()).unwrap();
    assert_eq!(get(&out, "containerInsights").as_deref(), Some("enhanced"));
    let own = json!({ "name": "containerInsights", "value": "enabled" });
    call!(f, put_account_setting, own).unwrap();
    let out = call!(f, list_account_settings, insights).unwrap();
    assert_eq!(get(&out, "containerInsights").as_deref(), Some("enabled"));
    let created = call!(f, create_cluster, json!({ "clusterName": "c" })).unwrap().cluster.unwrap();
    assert_eq!(created.settings.unwrap()[0].value.as_deref(), Some("enabled"));
    let deleted = call!(f, delete_account_setting, json!({ "name": "containerInsights" })).unwrap();
    assert_eq!(deleted.setting.unwrap().value.as_deref(), Some("enhanced"));

    let (mut names, mut token) = (Vec::new(), None);
    loop {
        let page = json!({ "effectiveSettings": true, "maxResults": 5, "nextToken": token });
        let out = call!(f, list_account_settings, page).unwrap();
        names.extend(out.settings.unwrap().into_iter().filter_map(|s| s.name));
        token = out.next_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names.len(), super::super::account_settings::KNOWN.len());
    assert!(names.is_sorted(), "{names:?}");

    for (input, text) in [
        (json!({ "name": "nonsense", "value": "x" }), "name should be one of"),
        (json!({ "name": "containerInsights", "value": "on" }), "containerInsights should be one of"),
        (json!({ "name": "guardDutyActivate", "value": "on" }), "managed by AWS"),
        (
            json!({ "name": "containerInsights", "value": "enabled", "principalArn": "arn:aws:iam::999999999999:root" }),
            "principal ARN",
        ),
    ] {
        assert_error(call!(f, put_account_setting, input), "InvalidParameterException", text);
    }
    assert_error(
        call!(f, list_account_settings, json!({ "value": "x" })),
        "InvalidParameterException",
        "setting name",
    );
}

#[tokio::test]
async fn the_default_log_mode_is_the_accounts() {
    let f = fixture().await;
    let options =
        json!({ "awslogs-group": "g", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "p" });
    let logged = container(json!({ "logConfiguration": { "logDriver": "awslogs", "options": options } }));
    let role = "arn:aws:iam::123456789012:role/r";
    call!(
        f,
        register_task_definition,
        definition(json!({ "containerDefinitions": [logged], "executionRoleArn": role }))
    )
    .unwrap();
    for (setting, want) in
        [(None, LogMode::NonBlocking { max_buffer_bytes: 10 << 20 }), (Some("blocking"), LogMode::Blocking)]
    {
        if let Some(value) = setting {
            call!(f, put_account_setting, json!({ "name": "defaultLogDriverMode", "value": value })).unwrap();
        }
        let task = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0);
        let log =
            super::tasks::intent(&f, task.task_arn.as_deref().unwrap()).await.spec.containers[0].log.clone();
        assert_eq!(log.unwrap().mode, want);
    }
}

#[tokio::test]
async fn clusters_definitions_and_tasks_have_tags() {
    let f = fixture().await;
    let definition =
        call!(f, register_task_definition, definition(json!({}))).unwrap().task_definition.unwrap();
    let task = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0);
    let arns = [
        "arn:aws:ecs:eu-central-1:123456789012:cluster/default".to_owned(),
        definition.task_definition_arn.unwrap(),
        task.task_arn.unwrap(),
    ];
    for arn in &arns {
        let tags = json!([{ "key": "a", "value": "1" }, { "key": "b", "value": "2" }]);
        call!(f, tag_resource, json!({ "resourceArn": arn, "tags": tags })).unwrap();
        call!(f, tag_resource, json!({ "resourceArn": arn, "tags": [{ "key": "a", "value": "3" }] }))
            .unwrap();
        call!(f, untag_resource, json!({ "resourceArn": arn, "tagKeys": ["b", "absent"] })).unwrap();
        let tags = call!(f, list_tags_for_resource, json!({ "resourceArn": arn })).unwrap().tags.unwrap();
        assert_eq!(serde_json::to_value(tags).unwrap(), json!([{ "key": "a", "value": "3" }]), "{arn}");
        let many: Vec<Value> = (0..50).map(|i| json!({ "key": format!("k{i}"), "value": "" })).collect();
        let many = json!({ "resourceArn": arn, "tags": many });
        assert_error(call!(f, tag_resource, many), "InvalidParameterException", "limit of 50");
    }
    let prefix = "arn:aws:ecs:eu-central-1:123456789012:";
    let id = "0".repeat(32);
    for (arn, code) in [
        ("web:1".to_owned(), "InvalidParameterException"),
        (format!("{prefix}service/default/x"), "InvalidParameterException"),
        (format!("{prefix}cluster/gone"), "ClusterNotFoundException"),
        (format!("{prefix}task-definition/web:9"), "ClientException"),
        (format!("{prefix}task-definition/web"), "ClientException"),
        (format!("{prefix}task/default/{id}"), "InvalidParameterException"),
        ("arn:aws:ecs:us-east-1:123456789012:cluster/default".to_owned(), "InvalidParameterException"),
    ] {
        let tags = json!({ "resourceArn": arn, "tags": [{ "key": "a", "value": "1" }] });
        assert_error(call!(f, tag_resource, tags), code, "");
        assert_error(call!(f, list_tags_for_resource, json!({ "resourceArn": arn })), code, "");
    }
}

#[tokio::test]
async fn a_task_has_the_tags_it_is_to_have() {
    let f = fixture().await;
    let tags = json!([{ "key": "team", "value": "definition" }, { "key": "only", "value": "d" }]);
    call!(f, register_task_definition, definition(json!({ "tags": tags }))).unwrap();
    let run = run_request(json!({
        "propagateTags": "TASK_DEFINITION",
        "enableECSManagedTags": true,
        "tags": [{ "key": "team", "value": "request" }, { "key": "coracle.isolation", "value": "microvm" }],
    }));
    let task = call!(f, run_task, run).unwrap().tasks.unwrap().remove(0);
    let tags = serde_json::to_value(task.tags.unwrap()).unwrap();
    assert_eq!(
        tags,
        json!([
            { "key": "aws:ecs:clusterName", "value": "default" },
            { "key": "coracle.isolation", "value": "microvm" },
            { "key": "only", "value": "d" },
            { "key": "team", "value": "request" },
        ])
    );
    let arn = task.task_arn.unwrap();
    let described = call!(f, describe_tasks, json!({ "tasks": [arn] })).unwrap().tasks.unwrap();
    assert_eq!(described[0].tags.as_deref(), Some(&[][..]));
    assert!(described[0].attributes.as_ref().unwrap().iter().any(|a| a.value.as_deref() == Some("microvm")));
    let described = call!(f, describe_tasks, json!({ "tasks": [arn], "include": ["TAGS"] })).unwrap();
    assert_eq!(described.tasks.unwrap()[0].tags.as_ref().unwrap().len(), 4);
    let task = super::tasks::intent(&f, &arn).await;
    assert!(f.ecs.store.get(&TaskPath::of_task(&task).pending()).await.unwrap().is_some());
}
