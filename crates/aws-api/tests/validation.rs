//! What a request that breaks its model is told.

use aws_api::{Error, Operation, ecr, ecs, logs, validate};
use serde_json::{Value, json};

fn check<O: Operation>(body: Value) -> Result<O::Input, Error> {
    let rules = &O::SERVICE.info().validation;
    let value = validate::parse(rules, O::INPUT_SCHEMA, body.to_string().as_bytes())?;
    Ok(serde_json::from_value(value).unwrap())
}

fn refusal<O: Operation>(body: Value) -> String {
    check::<O>(body).unwrap_err().to_string()
}

#[test]
fn every_broken_constraint_is_told_with_its_place() {
    type Put = logs::operation::PutLogEvents;
    assert_eq!(
        refusal::<Put>(json!({
            "logGroupName": "",
            "logStreamName": "a:b",
            "logEvents": [{ "timestamp": -1, "message": "m" }, { "timestamp": 1 }],
        })),
        "InvalidParameterException: 5 validation errors detected: \
         Value '' at 'logGroupName' failed to satisfy constraint: Member must satisfy regular \
         expression pattern: [\\.\\-_/#A-Za-z0-9]+; \
         Value '' at 'logGroupName' failed to satisfy constraint: Member must have length greater \
         than or equal to 1; \
         Value 'a:b' at 'logStreamName' failed to satisfy constraint: Member must satisfy regular \
         expression pattern: [^:*]*; \
         Value '-1' at 'logEvents.1.member.timestamp' failed to satisfy constraint: Member must \
         have value greater than or equal to 0; \
         Value null at 'logEvents.2.member.message' failed to satisfy constraint: Member must not \
         be null"
    );
    assert_eq!(
        refusal::<Put>(json!({ "logGroupName": "g", "logStreamName": "s", "logEvents": [] })),
        "InvalidParameterException: 1 validation error detected: Value '[]' at 'logEvents' failed \
         to satisfy constraint: Member must have length greater than or equal to 1"
    );
}

#[test]
fn scalar_members_are_told_at_their_container() {
    assert_eq!(
        refusal::<ecs::operation::DescribeTasks>(json!({ "tasks": ["t"], "include": ["NOTES"] })),
        "InvalidParameterException: 1 validation error detected: Value '[NOTES]' at 'include' \
         failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum \
         value set: [TAGS]]"
    );
    assert_eq!(
        refusal::<logs::operation::CreateLogGroup>(json!({
            "logGroupName": "g",
            "tags": { "": "v" },
        })),
        "InvalidParameterException: 1 validation error detected: Value '{=v}' at 'tags' failed to \
         satisfy constraint: Map keys must satisfy constraint: [Member must satisfy regular \
         expression pattern: ^([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]+)$, Member must have length greater \
         than or equal to 1]"
    );
    assert_eq!(
        refusal::<ecs::operation::RegisterTaskDefinition>(json!({
            "family": "f",
            "containerDefinitions": [null, { "environment": [{ "value": "v" }, null] }],
        })),
        "InvalidParameterException: 2 validation errors detected: \
         Value null at 'containerDefinitions.1.member' failed to satisfy constraint: Member must \
         not be null; \
         Value null at 'containerDefinitions.2.member.environment.2.member' failed to satisfy \
         constraint: Member must not be null"
    );
}

#[test]
fn ecr_has_words_of_its_own() {
    type Create = ecr::operation::CreateRepository;
    assert_eq!(
        refusal::<Create>(json!({ "repositoryName": "a" })),
        "InvalidParameterException: Invalid parameter at 'repositoryName' failed to satisfy \
         constraint: 'must have length greater than or equal to 2'"
    );
    assert!(check::<Create>(json!({ "repositoryName": "team/app_1" })).is_ok());
}

#[test]
fn a_wrong_json_type_is_a_serialization_error() {
    type Run = ecs::operation::RunTask;
    for (member, value, message) in [
        ("count", json!("1"), "STRING_VALUE cannot be converted to Integer"),
        ("count", json!(true), "TRUE_VALUE cannot be converted to Integer"),
        ("count", json!(3_000_000_000_u64), "NUMBER_VALUE cannot be converted to Integer"),
        ("group", json!(1), "NUMBER_VALUE cannot be converted to String"),
        ("group", json!([]), "Start of list found where not expected"),
        ("group", json!({}), "Start of structure or map found where not expected."),
        ("tags", json!({}), "Start of structure or map found where not expected."),
        ("tags", json!("x"), "STRING_VALUE cannot be converted to Tags"),
        ("overrides", json!([]), "Start of list found where not expected"),
        ("enableExecuteCommand", json!(0), "NUMBER_VALUE cannot be converted to Boolean"),
    ] {
        assert_eq!(
            refusal::<Run>(json!({ "taskDefinition": "t", member: value })),
            format!("SerializationException: {message}")
        );
    }
    for body in ["", "  ", "{}"] {
        // No body is an empty structure: only what is required is missing.
        let rules = &ecs_rules().validation;
        let error = validate::parse(rules, Run::INPUT_SCHEMA, body.as_bytes()).unwrap_err();
        assert_eq!(error.code, "InvalidParameterException");
    }
    for body in ["{", "{}x", "null", "[]", "\"\"", "{\"a\" 1}", "\u{feff}{}"] {
        let rules = &ecs_rules().validation;
        let error = validate::parse(rules, Run::INPUT_SCHEMA, body.as_bytes()).unwrap_err();
        assert_eq!(error.code, "SerializationException", "{body}");
    }
}

fn ecs_rules() -> &'static aws_api::ServiceInfo {
    aws_api::Service::Ecs.info()
}

#[test]
fn what_aws_takes_is_taken() {
    let input = check::<ecs::operation::RunTask>(json!({
        "taskDefinition": "t",
        "count": 2.9,
        "group": null,
        "notInTheModel": { "deep": [1, 2, { "x": null }] },
        "startedBy": "again",
    }))
    .unwrap();
    assert_eq!(input.count, Some(2));
    assert_eq!(input.group, None);
    assert_eq!(input.started_by.as_deref(), Some("again"));
}

#[test]
fn secrets_do_not_show() {
    let input = check::<ecs::operation::RegisterTaskDefinition>(json!({
        "family": "f",
        "containerDefinitions": [{
            "environment": [{ "name": "PASSWORD", "value": "hunter2" }],
            "repositoryCredentials": { "credentialsParameter": "hunter3" },
        }],
    }))
    .unwrap();
    assert!(!format!("{input:?}").contains("hunter"));
    let environment = input.container_definitions[0].environment.as_ref().unwrap();
    assert_eq!(environment[0].value.as_deref(), Some("hunter2"));
    assert!(serde_json::to_string(&input).unwrap().contains("hunter2"));
}
