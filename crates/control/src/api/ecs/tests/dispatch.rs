//! Requests as they come over the wire.

use aws_api::Service;
use bytes::Bytes;
use http::{Method, Request};
use serde_json::{Value, json};

use super::{Fixture, definition, fixture};
use crate::api::Answer;

async fn request(f: &Fixture, operation: &str, body: &str) -> Result<Value, aws_api::Error> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/")
        .header("x-amz-target", format!("AmazonEC2ContainerServiceV20141113.{operation}"))
        .header("content-type", "application/x-amz-json-1.1")
        .body(())
        .unwrap();
    let body = Bytes::copy_from_slice(body.as_bytes());
    let (parts, ()) = request.into_parts();
    let routed = aws_api::route(&parts, &body)?;
    match crate::api::ecs::dispatch(&f.ecs, &f.caller, &routed, &body).await? {
        Answer::Whole(response) => Ok(serde_json::from_slice(response.body()).unwrap()),
        Answer::Stream(_) => panic!("no operation of ECS streams"),
    }
}

#[tokio::test]
async fn every_operation_is_served_or_says_that_it_is_not() {
    let f = fixture().await;
    for operation in Service::Ecs.operations() {
        let unsupported = match request(&f, operation.name, "{}").await {
            Ok(_) => false,
            Err(error) => {
                assert!(error.http_status != 500, "{}: {error}", operation.name);
                error.code == "UnknownOperationException"
            }
        };
        assert_eq!(unsupported, !operation.served(), "{}", operation.name);
    }
}

#[tokio::test]
async fn bodies_that_are_no_requests_get_clear_errors() {
    let f = fixture().await;
    for (operation, body, code) in [
        ("RunTask", "", "InvalidParameterException"),
        ("RunTask", "{", "SerializationException"),
        ("RunTask", "[]", "SerializationException"),
        ("RunTask", r#"{"count": "many", "taskDefinition": "x"}"#, "SerializationException"),
        ("RunTask", r#"{"taskDefinition": "x", "launchType": "MOON"}"#, "InvalidParameterException"),
        ("ListTasks", r#"{"desiredStatus": "DONE"}"#, "InvalidParameterException"),
        ("DescribeTasks", r#"{"tasks": [1]}"#, "SerializationException"),
    ] {
        let error = request(&f, operation, body).await.unwrap_err();
        assert_eq!(error.code, code, "{operation} {body}: {}", error.message);
    }
}

#[tokio::test]
async fn answers_are_the_wires() {
    let f = fixture().await;
    let body = definition(json!({})).to_string();
    let answer = request(&f, "RegisterTaskDefinition", &body).await.unwrap();
    assert_eq!(answer["taskDefinition"]["family"], "web");
    assert_eq!(answer["taskDefinition"]["registeredAt"], 1_700_000_000.0);
}
