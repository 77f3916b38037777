//! The whole wire against unmodified boto3 and the `aws` command: what they send is routed,
//! verified, validated and decoded; what we answer is what they read.

mod server;

use std::process::Command;

use serde_json::{Value, json};

use server::{ACCESS_KEY_ID, REGION, SECRET_KEY, Server};

/// Runs a Python program with `client(service)` at hand; what it prints last is JSON.
fn python(server: &Server, program: &str) -> Value {
    let prelude = r#"
import boto3, json, sys, urllib.error, urllib.request
from botocore.config import Config
from botocore.exceptions import ClientError

CONFIG = Config(retries={"total_max_attempts": 1}, parameter_validation=False,
                user_agent_extra="coracle  test")

def client(service, **more):
    return boto3.client(service, config=CONFIG, **more)

def error(call, **arguments):
    try:
        call(**arguments)
    except ClientError as problem:
        answer = problem.response
        return [answer["Error"]["Code"], answer["Error"]["Message"],
                answer["ResponseMetadata"]["HTTPStatusCode"]]
    return "no error"

def show(value):
    print(json.dumps(value, default=str))
"#;
    let output = Command::new("python3")
        .args(["-c", &format!("{prelude}\n{program}")])
        .envs(environment(server))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn environment(server: &Server) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", server.endpoint()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_DEFAULT_REGION", REGION.to_owned()),
        ("AWS_CONFIG_FILE", "/nonexistent".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".to_owned()),
        // Else StartLiveTail would go to the host `stream-127.0.0.1`.
        ("AWS_DISABLE_HOST_PREFIX_INJECTION", "true".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("NO_PROXY", "*".to_owned()),
    ]
}

#[test]
fn json_operations_go_there_and_back() {
    let server = Server::start();
    let seen = python(
        &server,
        r#"
ecs, ecr, logs = client("ecs"), client("ecr"), client("logs")
task = ecs.describe_tasks(tasks=["a", "b"], include=["TAGS"])["tasks"][0]
show({
    "task": [task["taskArn"], task["createdAt"].timestamp(), task["tags"]],
    "layer": ecr.upload_layer_part(repositoryName="a/b", uploadId="0" * 8 + "-0000-0000-0000-" + "0" * 12,
        partFirstByte=0, partLastByte=4, layerPartBlob=b"\x00\xff\x10")["lastByteReceived"],
    "empty": logs.create_log_group(logGroupName="/a", tags={"k": "v"})["ResponseMetadata"]["HTTPStatusCode"],
    "request id": len(logs.create_log_group(logGroupName="/a")["ResponseMetadata"]["RequestId"]) > 0,
})
"#,
    );
    assert_eq!(
        seen,
        json!({
            "task": ["task-a", 1_767_225_600.25, [{ "key": "k", "value": "ä" }]],
            "layer": 3,
            "empty": 200,
            "request id": true,
        })
    );
}

#[test]
fn errors_arrive_with_code_message_and_status() {
    let server = Server::start();
    let seen = python(
        &server,
        r#"
ecs, ecr, logs, sts = client("ecs"), client("ecr"), client("logs"), client("sts")
stranger = client("ecs", aws_access_key_id="AKIASTRANGER", aws_secret_access_key="x")
known = boto3.Session().get_credentials().access_key
wrong = client("ecs", aws_access_key_id=known, aws_secret_access_key="x")
wrong_sts = client("sts", aws_access_key_id=known, aws_secret_access_key="x")
abroad = client("ecs", region_name="ap-south-1")
show({
    "enum": error(ecs.run_task, taskDefinition="a", launchType="MOON"),
    "missing": error(ecs.run_task),
    "type": error(ecs.run_task, taskDefinition="a", count="b"),
    "ecr": error(ecr.create_repository, repositoryName="A"),
    "logs": error(logs.create_log_group, logGroupName="a b"),
    "fields": error(logs.put_log_events, logGroupName="a", logStreamName="b",
                    logEvents=[{"timestamp": 1, "message": "m"}]),
    "unserved": error(ecs.list_services),
    "unserved query": error(sts.get_session_token),
    "stranger": error(stranger.list_clusters),
    "wrong": error(wrong.list_clusters),
    "wrong query": error(wrong_sts.get_caller_identity),
    "abroad": error(abroad.list_clusters),
})
"#,
    );
    let mismatch = "The request signature we calculated does not match the signature you \
                    provided. Check your AWS Secret Access Key and signing method. Consult the \
                    service documentation for details.";
    let unserved = |name: &str| {
        format!("Coracle does not serve {name} yet; `coracle api-coverage` lists what it serves.")
    };
    let expected = json!({
        "enum": [
            "InvalidParameterException",
            "1 validation error detected: Value 'MOON' at 'launchType' failed to satisfy \
             constraint: Member must satisfy enum value set: [EC2, FARGATE, EXTERNAL, \
             MANAGED_INSTANCES]",
            400
        ],
        "missing": [
            "InvalidParameterException",
            "1 validation error detected: Value null at 'taskDefinition' failed to satisfy \
             constraint: Member must not be null",
            400
        ],
        "type": ["SerializationException", "STRING_VALUE cannot be converted to Integer", 400],
        "ecr": [
            "InvalidParameterException",
            "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'must satisfy \
             regular expression '[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(\\/[a-z0-9]+((\\.|_|__|-+)\
             [a-z0-9]+)*)*''",
            400
        ],
        "logs": [
            "InvalidParameterException",
            "1 validation error detected: Value 'a b' at 'logGroupName' failed to satisfy \
             constraint: Member must satisfy regular expression pattern: [\\.\\-_/#A-Za-z0-9]+",
            400
        ],
        "fields": ["InvalidSequenceTokenException", "The next one is 7", 400],
        "unserved": ["UnknownOperationException", unserved("ecs:ListServices"), 400],
        "unserved query": ["InvalidAction", unserved("sts:GetSessionToken"), 400],
        "stranger": [
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            400
        ],
        "wrong": ["InvalidSignatureException", mismatch, 400],
        "wrong query": ["SignatureDoesNotMatch", mismatch, 403],
        "abroad": [
            "InvalidSignatureException",
            "Credential should be scoped to a valid region, not 'ap-south-1'. ",
            400
        ],
    });
    for (name, expected) in expected.as_object().unwrap() {
        assert_eq!(&seen[name], expected, "{name}");
    }
}

#[test]
fn identity_is_told_by_post_and_by_presigned_url() {
    let server = Server::start();
    let seen = python(
        &server,
        r#"
sts = client("sts")
identity = sts.get_caller_identity()
def presign(method):
    return sts.generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod=method)
def fetch(url, method="GET"):
    try:
        request = urllib.request.Request(url, method=method)
        return urllib.request.urlopen(request).read().decode()
    except urllib.error.HTTPError as problem:
        return [problem.code, problem.read().decode()]
show({"post": [identity["Account"], identity["Arn"], identity["UserId"]],
      "presigned": [fetch(presign("GET")), fetch(presign("POST"), "POST")],
      "changed": fetch(presign("GET") + "&a=b")[0]})
"#,
    );
    let arn = "arn:aws:iam::000000000000:root";
    assert_eq!(seen["post"], json!(["000000000000", arn, "<&>"]));
    for body in seen["presigned"].as_array().unwrap() {
        let expected = "<GetCallerIdentityResponse \
                        xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                        <GetCallerIdentityResult>";
        assert!(body.as_str().unwrap().starts_with(expected), "{body}");
    }
    assert_eq!(seen["changed"], 403);
}

#[test]
fn botocore_reads_our_event_stream() {
    let server = Server::start();
    let seen = python(
        &server,
        r#"
stream = client("logs").start_live_tail(logGroupIdentifiers=["arn:aws:logs:r:0:log-group:g"])
events = []
try:
    for event in stream["responseStream"]:
        events.append(event)
except Exception as problem:
    events.append([type(problem).__name__, str(problem)])
show(events)
"#,
    );
    assert_eq!(seen[0]["sessionStart"]["sessionId"], "s");
    assert_eq!(seen[1]["sessionUpdate"]["sessionResults"][0]["message"], "häl\nlo");
    assert_eq!(seen[2][0], "EventStreamError");
    let problem = seen[2][1].as_str().unwrap();
    assert!(problem.contains("SessionTimeoutException") && problem.contains("too long"), "{problem}");
    assert_eq!(seen.as_array().unwrap().len(), 3);
}

#[test]
fn the_aws_command_is_served() {
    let server = Server::start();
    let output = Command::new("aws")
        .args(["sts", "get-caller-identity", "--output", "json"])
        .envs(environment(&server))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let identity: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(identity["Account"], "000000000000");
}
