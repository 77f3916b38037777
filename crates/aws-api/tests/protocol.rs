//! Routing, and the forms of answers, where boto3 alone would not show them.

use aws_api::sigv4::{Credentials, SecretKey, Verifier};
use aws_api::{Error, Protocol, Routed, Service, Timestamp, client, ecr, ecs, error, logs, route};
use bytes::Bytes;
use http::{Request, StatusCode};

fn routed(request: Request<&str>) -> Result<Routed, Error> {
    let (parts, body) = request.into_parts();
    route(&parts, &Bytes::from(body.to_owned()))
}

fn target(target: &str) -> Result<Routed, Error> {
    routed(Request::post("/").header("x-amz-target", target).body("{}").unwrap())
}

#[test]
fn the_target_names_service_and_operation() {
    let ecs = target("AmazonEC2ContainerServiceV20141113.RunTask").unwrap();
    assert_eq!((ecs.service, ecs.operation.name), (Service::Ecs, "RunTask"));
    assert!(ecs.require_served().is_ok());
    let ecr = target("AmazonEC2ContainerRegistry_V20150921.PutImage").unwrap();
    assert_eq!((ecr.service, ecr.protocol), (Service::Ecr, Protocol::Json11));
    let unserved = target("Logs_20140328.PutSubscriptionFilter").unwrap();
    assert_eq!(unserved.require_served().unwrap_err().code, "UnknownOperationException");
    for unknown in ["", "RunTask", "Logs_20140328.", "Logs_20140328.Fly", "X.RunTask", "é.x"] {
        assert_eq!(target(unknown).unwrap_err().code, "UnknownOperationException", "{unknown}");
    }
    let get = Request::get("/").header("x-amz-target", "Logs_20140328.PutLogEvents").body("");
    assert_eq!(routed(get.unwrap()).unwrap_err().code, "UnknownOperationException");
    assert!(routed(Request::get("/favicon.ico").body("").unwrap()).is_err());
}

#[test]
fn a_query_names_its_service_by_scope_or_host() {
    let form = "Action=GetCallerIdentity&Version=2011-06-15";
    let request = |name: &str, value: &str| {
        Request::post("/")
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header(name, value)
            .body(form)
            .unwrap()
    };
    let scope = "AWS4-HMAC-SHA256 Credential=A/20260101/r/sts/aws4_request, SignedHeaders=host";
    for (name, value) in [("authorization", scope), ("host", "sts.eu-central-1.example")] {
        let routed = routed(request(name, value)).unwrap();
        assert_eq!((routed.service, routed.operation.name), (Service::Sts, "GetCallerIdentity"));
    }
    let other = scope.replace("sts", "iam");
    for (name, value) in [("authorization", other.as_str()), ("host", "127.0.0.1:4566")] {
        let error = routed(request(name, value)).unwrap_err();
        let response = Protocol::Query.encode_error(&error, "id");
        assert_eq!(response.headers()["x-amzn-errortype"], "InvalidAction");
    }
}

#[test]
fn bodies_have_a_limit() {
    let body = format!("{{\"family\":\"{}\"}}", "x".repeat(1 << 20));
    let request = Request::post("/")
        .header("x-amz-target", "AmazonEC2ContainerServiceV20141113.RegisterTaskDefinition")
        .body(body.as_str())
        .unwrap();
    assert_eq!(routed(request).unwrap_err().http_status, 413);
    let largest = Service::ALL.iter().map(|service| service.info().max_body).max();
    assert_eq!(largest, Some(Service::MAX_BODY));
}

#[test]
fn tables_are_sorted_and_complete() {
    for service in Service::ALL {
        assert!(service.operations().is_sorted_by_key(|operation| operation.name));
    }
    let count = |service: Service| {
        let operations = service.operations();
        (operations.iter().filter(|operation| operation.served()).count(), operations.len())
    };
    assert_eq!(count(Service::Ecs), (25, 77));
    assert_eq!(count(Service::Sts), (1, 11));
}

#[test]
fn json_errors_have_type_message_and_fields() {
    let error = ecr::error::invalid_layer_part_exception("Not \"next\"").with_field("uploadId", "u");
    let response = Protocol::Json11.encode_error(&error, "the-id");
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["content-type"], "application/x-amz-json-1.1");
    assert_eq!(response.headers()["x-amzn-requestid"], "the-id");
    assert_eq!(response.headers()["x-amzn-errortype"], "InvalidLayerPartException");
    let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "__type": "InvalidLayerPartException",
            "message": "Not \"next\"",
            "uploadId": "u",
        })
    );
    assert_eq!(client::parse_error(StatusCode::BAD_REQUEST, response.body()), error);
    assert_eq!(ecs::error::server_exception("").http_status, 500);
}

#[test]
fn query_errors_have_codes_of_their_own() {
    for (error, code, status) in [
        (error::common::missing_authentication_token(), "MissingAuthenticationToken", 403),
        (error::common::expired_token(), "ExpiredToken", 403),
        (error::common::throttling(), "Throttling", 400),
        (error::common::internal_failure("<oh>\u{1}"), "InternalFailure", 500),
    ] {
        let response = Protocol::Query.encode_error(&error, "id");
        assert_eq!(response.status(), status);
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        assert!(body.contains(&format!("<Code>{code}</Code>")), "{body}");
        assert!(!body.contains("<oh>") && !body.contains('\u{1}'), "{body}");
    }
}

#[test]
fn our_client_and_server_understand_each_other() {
    let credentials = Credentials {
        access_key_id: "AKID".to_owned(),
        secret_key: SecretKey::from("secret"),
        session_token: None,
    };
    assert!(!format!("{credentials:?}").contains("secret\""));
    let input =
        ecs::RunTaskRequest { task_definition: "web:1".to_owned(), count: Some(2), ..Default::default() };
    let time = Timestamp::from_millis(1_767_225_600_000);
    let endpoint = "http://127.0.0.1:4566".parse().unwrap();
    type Run = ecs::operation::RunTask;
    let request = client::request::<Run>(&endpoint, &credentials, "r", &input, time).unwrap();
    assert_eq!(request.headers()["host"], "127.0.0.1:4566");

    let (parts, body) = request.into_parts();
    let lookup = |id: &str| (id == "AKID").then(|| SecretKey::from("secret"));
    let verified = Verifier::default().verify(&parts, &body, time, lookup).unwrap();
    let routed = route(&parts, &body).unwrap();
    verified.check_scope(routed.service, "r").unwrap();
    assert_eq!(routed.decode::<Run>(&verified.body), Ok(input));
    assert!(routed.decode::<ecs::operation::StopTask>(&verified.body).is_err());

    let output = ecs::RunTaskResponse {
        tasks: Some(vec![ecs::Task {
            created_at: Some(Timestamp::from_millis(1_767_225_600_001)),
            ..Default::default()
        }]),
        ..Default::default()
    };
    let response = routed.encode_ok(&output, "id");
    assert_eq!(client::parse::<Run>(response.status(), response.body()), Ok(output));
    let error = ecs::error::cluster_not_found_exception("Cluster not found.");
    let response = routed.encode_error(&error, "id");
    assert_eq!(client::parse::<Run>(response.status(), response.body()), Err(error));
    let error = client::parse::<Run>(StatusCode::BAD_GATEWAY, b"<html>").unwrap_err();
    assert_eq!((error.code.as_str(), error.http_status), ("BadGateway", 502));
    let empty = client::parse::<logs::operation::CreateLogGroup>(StatusCode::OK, b"");
    assert_eq!(empty, Ok(logs::CreateLogGroupResponse {}));
}
