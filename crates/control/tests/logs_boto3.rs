//! CloudWatch Logs as boto3 sees it: an unmodified client against the handlers, over HTTP on loopback.
//! Signatures are not asked here.

use std::net::Ipv4Addr;
use std::process::Stdio;

use aws_api::Error;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use control::api::logs::{self, Logs};
use control::api::{Answer, Caller};
use control::clock::Clock;
use control::telemetry::logs::LogStore;
use http_body_util::BodyExt;
use model::{AccountId, Region};

async fn answer(logs: Logs, parts: &http::request::Parts, body: Bytes) -> Result<Response, Error> {
    let routed = aws_api::route(parts, &body)?;
    routed.require_served()?;
    let caller = Caller {
        account: AccountId::parse("123456789012").expect("account"),
        region: Region::parse("eu-central-1").expect("region"),
        principal_arn: "arn:aws:iam::123456789012:root".into(),
        request_id: "request".into(),
    };
    match logs::dispatch(&logs, &caller, &routed, &body).await? {
        Answer::Whole(response) => Ok(response.map(Body::from)),
        Answer::Stream(response) => Ok(response),
    }
}

async fn serve(State(logs): State<Logs>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    match answer(logs, &parts, body).await {
        Ok(response) => response,
        Err(error) => aws_api::Protocol::of(&parts).encode_error(&error, "request").map(Body::from),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_works_with_groups_streams_events_and_live_tail() {
    let dir = tempfile::Builder::new().prefix("logs-boto3-").tempdir().expect("directory");
    let clock = Clock::system();
    let logs = Logs { store: LogStore::open(dir.path(), clock.clone()).expect("open"), clock };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let router = Router::new().fallback(serve).with_state(logs);
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/logs_boto3.py");
    let client = tokio::process::Command::new("python3")
        .arg(script)
        .arg(&endpoint)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_DEFAULT_REGION", "eu-central-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_DISABLE_HOST_PREFIX_INJECTION", "true")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("python3 runs");
    server.abort();
    assert!(
        client.status.success(),
        "{}{}",
        String::from_utf8_lossy(&client.stdout),
        String::from_utf8_lossy(&client.stderr)
    );
}
