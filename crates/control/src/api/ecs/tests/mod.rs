//! Handlers over an embedded store, and what tests of single rules share.

mod clusters;
mod definitions;
mod dispatch;
mod rules;
mod settings_and_tags;
mod tasks;
mod views;

use std::net::Ipv4Addr;
use std::sync::Arc;

use aws_api::Error;
use aws_api::ecs::{RegisterTaskDefinitionRequest, RunTaskRequest, TaskDefinition};
use model::network::{Cidr, Subnet};
use model::spec::Isolation;
use model::{AccountId, Region, SecurityGroupId, SubnetId, Timestamp, VpcId};
use serde_json::{Value, json};
use store::Store;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::{Caller, Ecs};
use crate::clock::Clock;

pub(super) const SUBNET: &str = "subnet-0123456789abcdef0";
pub(super) const GROUP: &str = "sg-0123456789abcdef0";

pub(super) fn caller() -> Caller {
    Caller {
        account: AccountId::parse("123456789012").unwrap(),
        region: Region::parse("eu-central-1").unwrap(),
        principal_arn: "arn:aws:iam::123456789012:root".to_owned(),
        request_id: "request".to_owned(),
    }
}

/// ECS over a store of its own, with the cluster `default`. The directory lives as long as it.
pub(crate) struct Fixture {
    pub ecs: Ecs,
    pub caller: Caller,
    _directory: TempDir,
}

pub(crate) async fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let block = |prefix_len| Cidr { base: Ipv4Addr::new(172, 31, 0, 0), prefix_len };
    let ecs = Ecs {
        store: Store::open_embedded(&directory.path().join("state.db")).unwrap(),
        clock: Clock::manual(Timestamp(1_700_000_000_000)),
        wake: Arc::new(Notify::new()),
        default_subnet: Subnet {
            id: SubnetId::parse(SUBNET).unwrap(),
            vpc: VpcId::parse("vpc-0123456789abcdef0").unwrap(),
            vpc_cidr: block(16),
            cidr: block(20),
            availability_zone: "eu-central-1a".to_owned(),
        },
        default_security_group: SecurityGroupId::parse(GROUP).unwrap(),
        default_isolation: Isolation::Container,
    };
    let caller = caller();
    crate::first_start::create_cluster(&ecs.store, &caller.account, &caller.region, ecs.clock.now())
        .await
        .unwrap();
    Fixture { ecs, caller, _directory: directory }
}

pub(super) async fn sweep(fixture: &Fixture) {
    super::sweep(&fixture.ecs.store, fixture.ecs.clock.now()).await.unwrap();
}

/// Calls an operation's handler with its input as JSON.
macro_rules! call {
    ($fixture:expr, $operation:ident, $input:expr) => {
        crate::api::ecs::$operation::handle(
            &$fixture.ecs,
            &$fixture.caller,
            serde_json::from_value($input).expect("the test's input is of the operation's type"),
        )
        .await
    };
}
pub(super) use call;

/// A definition that Fargate takes, with the given members merged in.
pub(crate) fn definition(changes: Value) -> Value {
    let mut definition = json!({
        "family": "web",
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [container(json!({}))],
    });
    merge(&mut definition, changes);
    definition
}

pub(crate) fn container(changes: Value) -> Value {
    let mut container = json!({ "name": "app", "image": "localhost:5000/app:1" });
    merge(&mut container, changes);
    container
}

fn merge(into: &mut Value, changes: Value) {
    let (Value::Object(into), Value::Object(changes)) = (into, changes) else { panic!("objects") };
    for (key, value) in changes {
        match value {
            Value::Null => drop(into.remove(&key)),
            value => drop(into.insert(key, value)),
        }
    }
}

pub(super) fn document(definition: Value) -> Result<TaskDefinition, Error> {
    document_for(definition, Isolation::Container)
}

pub(super) fn document_for(definition: Value, isolation: Isolation) -> Result<TaskDefinition, Error> {
    let request: RegisterTaskDefinitionRequest = serde_json::from_value(definition).unwrap();
    super::definition_document::from_request(request, isolation)
}

/// A run request of the family `web` that works, with the given members merged in.
pub(crate) fn run_request(changes: Value) -> Value {
    let mut request = json!({
        "taskDefinition": "web",
        "launchType": "FARGATE",
        "networkConfiguration": { "awsvpcConfiguration": { "subnets": [SUBNET] } },
    });
    merge(&mut request, changes);
    let _typed: RunTaskRequest = serde_json::from_value(request.clone()).unwrap();
    request
}

/// Registers a definition of the family `web` and runs it once.
pub(crate) async fn run(fixture: &Fixture, definition: Value) {
    call!(fixture, register_task_definition, definition).unwrap();
    call!(fixture, run_task, run_request(json!({}))).unwrap();
}

#[track_caller]
pub(super) fn assert_error<T: std::fmt::Debug>(result: Result<T, Error>, code: &str, text: &str) {
    let error = result.expect_err(text);
    assert_eq!(error.code, code, "{}", error.message);
    assert!(error.message.contains(text), "wanted {text:?} in {:?}", error.message);
}
