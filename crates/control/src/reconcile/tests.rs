//! Passes over an embedded store.

use model::AccountId;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::api::ecs::tests::{Fixture, container, definition, fixture, run};
use crate::telemetry::logs::{Cursor, Event, NewGroup};

struct Scene {
    api: Fixture,
    reconciler: Reconciler,
    _logs: TempDir,
}

async fn scene() -> Scene {
    let api = fixture().await;
    let directory = tempfile::tempdir().expect("directory");
    let logs = LogStore::open(directory.path(), api.ecs.clock.clone()).expect("log store");
    let (store, clock, wake) = (api.ecs.store.clone(), api.ecs.clock.clone(), api.ecs.wake.clone());
    Scene { api, reconciler: Reconciler { store, logs, clock, wake }, _logs: directory }
}

/// Runs a task that no host can take: it has ended before it began.
async fn run_in_vain(scene: &Scene) -> Task {
    let fixture = &scene.api;
    let options = json!({
        "awslogs-group": "g", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "s", "awslogs-create-group": "true",
    });
    let logged = container(json!({ "logConfiguration": { "logDriver": "awslogs", "options": options } }));
    let role = "arn:aws:iam::123456789012:role/r";
    let input = definition(json!({ "containerDefinitions": [logged], "executionRoleArn": role }));
    run(fixture, input).await;
    let tasks = fixture.ecs.store.range_json::<Task>(Range::prefix(keys::TASKS)).await.expect("tasks");
    tasks.entries.into_iter().next().expect("a task").1.value
}

#[tokio::test]
async fn a_forgotten_task_leaves_no_log_cursor() {
    let scene = scene().await;
    let task = run_in_vain(&scene).await;
    let (reconciler, mut held) = (&scene.reconciler, None);
    let scope =
        Scope { account: AccountId::parse("123456789012").expect("account"), region: task.region.clone() };
    let group = NewGroup { name: "g".to_owned(), ..NewGroup::default() };
    reconciler.logs.create_group(&scope, group).await.expect("group");
    reconciler.logs.create_stream(&scope, "g", "s").await.expect("stream");
    let source = cursor_source(&task.id, "app");
    let event = Event { timestamp: reconciler.clock.now().millis(), message: "m".to_owned() };
    let cursor = Cursor { source: source.clone(), upto: 1 };
    reconciler.logs.append(&scope, "g", "s", vec![event], Some(cursor)).await.expect("append");

    reconciler.pass(&mut held).await.expect("pass");
    reconciler.clock.advance(3_599_000);
    reconciler.pass(&mut held).await.expect("pass");
    let count = async || reconciler.store.range(Range::prefix(keys::TASKS)).await.expect("tasks").kvs.len();
    assert_eq!((count().await, reconciler.logs.cursor(&source).await.expect("cursor")), (1, 1));
    reconciler.clock.advance(1_000);
    reconciler.pass(&mut held).await.expect("pass");
    assert_eq!((count().await, reconciler.logs.cursor(&source).await.expect("cursor")), (0, 0));
}
