//! ECS as boto3 sees it: an unmodified client against the handlers, over HTTP on loopback. Signatures
//! are not asked here. A stand-in for reconciler and host writes what those write, so that the client's
//! waiters come to their ends.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;

use aws_api::Error;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use control::api::ecs::{self, Ecs};
use control::api::{Answer, Caller};
use control::clock::Clock;
use control::keys::{PENDING, TaskPath};
use http_body_util::BodyExt;
use model::assignment::{Assignment, Decision, Stopping};
use model::network::{Cidr, Eni, Mac, Subnet};
use model::observation::{ContainerObservation, Observation, TaskTimes};
use model::status::ContainerStatus;
use model::task::Task;
use model::{AccountId, EniId, HostId, Region, SecurityGroupId, SubnetId, TaskStatus, VpcId};
use store::{Range, Store, Txn};
use tokio::sync::Notify;

const SUBNET: &str = "subnet-0123456789abcdef0";
const GROUP: &str = "sg-0123456789abcdef0";

fn caller() -> Caller {
    Caller {
        account: AccountId::parse("123456789012").expect("account"),
        region: Region::parse("eu-central-1").expect("region"),
        principal_arn: "arn:aws:iam::123456789012:root".into(),
        request_id: "request".into(),
    }
}

async fn answer(ecs: Ecs, parts: &http::request::Parts, body: Bytes) -> Result<Response, Error> {
    let routed = aws_api::route(parts, &body)?;
    match ecs::dispatch(&ecs, &caller(), &routed, &body).await? {
        Answer::Whole(response) => Ok(response.map(Body::from)),
        Answer::Stream(response) => Ok(response),
    }
}

async fn serve(State(ecs): State<Ecs>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    match answer(ecs, &parts, body).await {
        Ok(response) => response,
        Err(error) => aws_api::Protocol::of(&parts).encode_error(&error, "request").map(Body::from),
    }
}

/// Places every task at once, on a host that runs and stops it at once.
async fn run_all(ecs: Ecs) {
    let mut given = 0;
    loop {
        ecs.wake.notified().await;
        let found = ecs.store.range(Range::prefix(PENDING)).await.expect("pending tasks");
        for kv in found.kvs {
            let path = TaskPath::of_key(PENDING, &kv.key).expect("a task's path");
            let task =
                ecs.store.get_json::<Task>(&path.intent()).await.expect("read").expect("an intent").value;
            given += 1;
            let assignment = ecs.store.get_json::<Assignment>(&path.assignment()).await.expect("read");
            let eni = match assignment.map(|found| found.value.decision) {
                Some(Decision::Placed { eni, .. }) => eni,
                _ => eni(given),
            };
            let (assignment, observation) = run(&ecs, &task, eni, given);
            let txn = Txn::new()
                .delete(path.pending())
                .put_json(path.assignment(), &assignment)
                .put_json(path.observation(), &observation);
            ecs.store.commit(txn).await.expect("commit");
        }
    }
}

fn eni(number: u64) -> Eni {
    let address = Ipv4Addr::new(172, 31, 0, u8::try_from(number).expect("few tasks"));
    Eni {
        id: EniId::from_random(number.into()),
        vpc: VpcId::parse("vpc-0123456789abcdef0").expect("vpc"),
        subnet: SubnetId::parse(SUBNET).expect("subnet"),
        mac: Mac::of_address(address),
        address,
        prefix_len: 20,
        gateway: Ipv4Addr::new(172, 31, 0, 1),
        resolver: Ipv4Addr::new(172, 31, 0, 2),
        private_dns_name: "ip.eu-central-1.compute.internal".into(),
    }
}

fn run(ecs: &Ecs, task: &Task, eni: Eni, sequence: u64) -> (Assignment, Observation) {
    let now = Some(ecs.clock.now());
    let stop = task.stop.as_ref().map(|stop| Stopping { at: stop.at, cause: stop.cause.clone() });
    let stopped = stop.is_some();
    let times = TaskTimes {
        connected_at: now,
        pull_started_at: now,
        pull_stopped_at: now,
        started_at: now,
        stopping_at: now.filter(|_| stopped),
        execution_stopped_at: now.filter(|_| stopped),
        stopped_at: now.filter(|_| stopped),
    };
    let containers = task.spec.containers.iter().map(|container| ContainerObservation {
        status: if stopped { ContainerStatus::Stopped } else { ContainerStatus::Running },
        exit_code: stopped.then_some(143),
        ..ContainerObservation::pending(&container.name)
    });
    let observation = Observation {
        task: task.id.clone(),
        sequence,
        status: if stopped { TaskStatus::Stopped } else { TaskStatus::Running },
        times,
        containers: containers.collect(),
        stop: stop.as_ref().map(|stop| stop.cause.clone()),
    };
    let host = HostId::parse("host").expect("host");
    let decision = Decision::Placed { host, eni, stop };
    (Assignment { task: task.id.clone(), decided_at: ecs.clock.now(), decision }, observation)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_works_with_clusters_definitions_tasks_and_waiters() {
    let dir = tempfile::Builder::new().prefix("ecs-boto3-").tempdir().expect("directory");
    let block = |prefix_len| Cidr { base: Ipv4Addr::new(172, 31, 0, 0), prefix_len };
    let ecs = Ecs {
        store: Store::open_embedded(&dir.path().join("state.db")).expect("store"),
        clock: Clock::system(),
        wake: Arc::new(Notify::new()),
        default_subnet: Subnet {
            id: SubnetId::parse(SUBNET).expect("subnet"),
            vpc: VpcId::parse("vpc-0123456789abcdef0").expect("vpc"),
            vpc_cidr: block(16),
            cidr: block(20),
            availability_zone: "eu-central-1a".into(),
        },
        default_security_group: SecurityGroupId::parse(GROUP).expect("group"),
        default_isolation: model::spec::Isolation::Container,
    };
    let Caller { account, region, .. } = caller();
    control::first_start::create_cluster(&ecs.store, &account, &region, ecs.clock.now())
        .await
        .expect("default cluster");
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let router = Router::new().fallback(serve).with_state(ecs.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let host = tokio::spawn(run_all(ecs));

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ecs_boto3.py");
    let client = tokio::process::Command::new("python3")
        .args([script, &endpoint, SUBNET, GROUP])
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_DEFAULT_REGION", "eu-central-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("python3 runs");
    server.abort();
    host.abort();
    assert!(
        client.status.success(),
        "{}{}",
        String::from_utf8_lossy(&client.stdout),
        String::from_utf8_lossy(&client.stderr)
    );
}
