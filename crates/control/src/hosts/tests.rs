//! Snapshots, from the call for one to the tasks that begin from it, with the test as the agent.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aws_api::Error;
use link::AgentEnd;
use model::host::Resources;
use model::network::{Eni, Mac};
use model::observation::TaskTimes;
use model::snapshot::{SnapshotReport, SnapshotStatus};
use model::spec::Isolation;
use model::status::TaskStatus;
use model::{EniId, Timestamp, VpcId};
use serde_json::{Value, json};

use super::*;
use crate::api::ecs::run_task;
use crate::api::ecs::tests::{Fixture, definition, fixture, run, run_request};
use crate::snapshots::{SnapshotError, Snapshots};

struct Scene {
    api: Fixture,
    snapshots: Snapshots,
    task: Task,
    agent: AgentEnd,
    stop: watch::Sender<bool>,
    _logs: tempfile::TempDir,
}

/// A microVM task that runs on the only host, and that host's session.
async fn scene() -> Scene {
    let mut api = fixture().await;
    api.ecs.default_isolation = Isolation::Microvm;
    run(&api, definition(json!({}))).await;
    let store = api.ecs.store.clone();
    let (_, task) =
        store.range_json::<Task>(Range::prefix(keys::TASKS)).await.unwrap().entries.pop().unwrap();
    let (task, path) = (task.value.clone(), TaskPath::of_task(&task.value));
    let subnet = api.ecs.default_subnet.clone();
    let eni = Eni {
        id: EniId::from_random(1),
        vpc: VpcId::parse("vpc-0123456789abcdef0").unwrap(),
        subnet: subnet.id.clone(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        address: Ipv4Addr::new(172, 31, 0, 4),
        prefix_len: 20,
        gateway: Ipv4Addr::new(172, 31, 0, 1),
        resolver: Ipv4Addr::new(172, 31, 0, 2),
        private_dns_name: "ip-172-31-0-4.x".to_owned(),
    };
    let decision = Decision::Placed { host: host().id, eni, stop: None };
    let assignment = Assignment { task: task.id.clone(), decided_at: Timestamp(1), decision };
    let txn = Txn::new().put_json(path.assignment(), &assignment);
    let subnet_key = format!("{}{}", keys::SUBNETS, subnet.id);
    store.commit(txn.put_json(subnet_key, &subnet)).await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let hosts = Hosts {
        store: store.clone(),
        logs: LogStore::open(directory.path(), api.ecs.clock.clone()).unwrap(),
        clock: api.ecs.clock.clone(),
        registry: Arc::new(|_| RegistryAccess { endpoint: String::new(), images: BTreeMap::new() }),
        wake: Arc::default(),
        connected: Arc::default(),
        pulls: Pulls::default(),
    };
    let (end, agent) = link::pair();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move { hosts.serve(end, stopped).await });
    let snapshots = Snapshots { store, clock: api.ecs.clock.clone() };
    Scene { api, snapshots, task, agent, stop, _logs: directory }
}

fn host() -> Host {
    Host {
        id: HostId::parse("host-1").unwrap(),
        incarnation: "1".to_owned(),
        capacity: Resources::default(),
        isolations: vec![Isolation::Microvm],
        architecture: "amd64".to_owned(),
        connected_at: Timestamp(0),
    }
}

impl Scene {
    async fn say(&self, message: ToControl) {
        self.agent.to_control.send(message).await.unwrap();
    }

    /// The snapshots that the agent is told of next.
    async fn told(&mut self) -> Vec<model::SnapshotId> {
        loop {
            let heard = tokio::time::timeout(Duration::from_secs(30), self.agent.from_control.recv()).await;
            if let ToAgent::Snapshots { wanted } = heard.unwrap().unwrap() {
                assert!(wanted.iter().all(|order| order.task == self.task.id));
                return wanted.into_iter().map(|order| order.id).collect();
            }
        }
    }

    async fn is_running(&self) {
        let observation = Observation {
            task: self.task.id.clone(),
            sequence: 5,
            status: TaskStatus::Running,
            times: TaskTimes::default(),
            containers: vec![],
            stop: None,
        };
        self.say(ToControl::Report { observation }).await;
        let key = TaskPath::of_task(&self.task).observation();
        wait(async || self.api.ecs.store.get(&key).await.unwrap().is_some()).await;
    }

    async fn create(&self) -> Result<model::SnapshotId, SnapshotError> {
        let made = self.snapshots.create(&self.api.caller, &self.task.cluster, &self.task.id).await?;
        assert_eq!((made.status, made.reason), (SnapshotStatus::Pending, None));
        Ok(made.snapshot_id)
    }

    async fn reported(&self, report: SnapshotReport) {
        let (id, status) = (report.id.clone(), report.status);
        self.say(ToControl::Snapshot { report }).await;
        wait(async || self.snapshots.get(&self.api.caller, id.as_str()).await.unwrap().status == status)
            .await;
    }

    async fn run_from(&self, id: &str, more: Value) -> Result<Task, Error> {
        let mut request = json!({ "tags": [{ "key": "coracle.snapshot", "value": id }] });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = serde_json::from_value(run_request(request)).unwrap();
        let started = run_task::handle(&self.api.ecs, &self.api.caller, request).await?.tasks.unwrap();
        let id = started[0].task_arn.as_deref().unwrap().rsplit('/').next().unwrap();
        let path = self.api.caller.scope().task(&self.task.cluster, &TaskId::parse(id).unwrap());
        Ok(self.api.ecs.store.get_json::<Task>(&path.intent()).await.unwrap().unwrap().value)
    }

    async fn refused(&self, id: &str, more: Value, text: &str) {
        let error = self.run_from(id, more).await.expect_err(text);
        assert_eq!(error.code, "InvalidParameterException", "{}", error.message);
        assert!(error.message.contains(text), "wanted {text:?} in {:?}", error.message);
    }
}

async fn wait(condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn ready(id: &model::SnapshotId) -> SnapshotReport {
    SnapshotReport {
        status: SnapshotStatus::Ready,
        reason: None,
        made_at: Some(Timestamp(7)),
        memory_bytes: 4096,
        ..SnapshotReport::failed(id.clone(), "")
    }
}

#[tokio::test]
async fn a_snapshot_is_made_kept_run_from_and_deleted() {
    let mut scene = scene().await;
    assert!(matches!(scene.create().await, Err(SnapshotError::NotRunning("PROVISIONING"))));
    scene.say(ToControl::Hello { host: host(), generation: 0 }).await;
    assert_eq!(scene.told().await, []);
    scene.is_running().await;
    let id = scene.create().await.unwrap();
    assert_eq!(scene.told().await, std::slice::from_ref(&id));
    scene.refused(id.as_str(), json!({}), "is not READY yet").await;
    scene.reported(ready(&id)).await;
    let listed = scene.snapshots.list(&scene.api.caller).await.unwrap();
    assert_eq!((listed.len(), listed[0].memory_bytes, listed[0].made_at), (1, 4096, Some(0.007)));
    assert!(listed[0].task_definition_arn.ends_with("task-definition/web:1"));

    // Tasks begin there, whatever isolates tasks that do not say.
    scene.api.ecs.default_isolation = Isolation::Container;
    let task = scene.run_from(id.as_str(), json!({})).await.unwrap();
    assert_eq!(task.spec.isolation, Isolation::Microvm);
    assert_eq!(task.spec.snapshot.map(|source| (source.id, source.host)), Some((id.clone(), host().id)));
    let silent = json!({ "overrides": { "containerOverrides": [{ "name": "app" }] } });
    scene.run_from(id.as_str(), silent).await.unwrap();
    let command = json!({ "overrides": { "containerOverrides": [{ "name": "app", "command": ["x"] }] } });
    scene.refused(id.as_str(), command, "Overrides of containers").await;
    let storage = json!({ "overrides": { "ephemeralStorage": { "sizeInGiB": 30 } } });
    scene.refused(id.as_str(), storage, "Overrides of containers").await;
    let tags = json!([
        { "key": "coracle.snapshot", "value": id }, { "key": "coracle.isolation", "value": "container" }
    ]);
    scene.refused(id.as_str(), json!({ "tags": tags }), "cannot go on in a container").await;
    run(&scene.api, definition(json!({}))).await;
    scene.refused(id.as_str(), json!({ "taskDefinition": "web:2" }), "is of a task of web:1").await;
    scene.refused("snap-0", json!({}), "there is no snapshot snap-0").await;

    // Another session is told the same, and what it repeats changes nothing.
    scene.say(ToControl::Hello { host: host(), generation: 0 }).await;
    assert_eq!(scene.told().await, std::slice::from_ref(&id));
    scene.reported(ready(&id)).await;
    scene.snapshots.delete(&scene.api.caller, id.as_str()).await.unwrap();
    assert_eq!(scene.told().await, []);
    // Said too late: it does not come back.
    scene.say(ToControl::Snapshot { report: ready(&id) }).await;
    assert_eq!(scene.told().await, []);
    assert!(scene.snapshots.list(&scene.api.caller).await.unwrap().is_empty());
    scene.refused(id.as_str(), json!({}), "there is no snapshot").await;
    scene.stop.send(true).unwrap();
}

#[tokio::test]
async fn a_failed_snapshot_stays_failed_and_says_why() {
    let mut scene = scene().await;
    scene.say(ToControl::Hello { host: host(), generation: 0 }).await;
    scene.is_running().await;
    assert_eq!(scene.told().await, []);
    let id = scene.create().await.unwrap();
    assert_eq!(scene.told().await, std::slice::from_ref(&id));
    scene.reported(SnapshotReport::failed(id.clone(), "the disk is full")).await;
    // The host need not keep anything of it.
    assert_eq!(scene.told().await, []);
    scene.refused(id.as_str(), json!({}), "has failed: the disk is full").await;
    scene.say(ToControl::Snapshot { report: ready(&id) }).await;
    assert_eq!(scene.told().await, []);
    let shown = scene.snapshots.get(&scene.api.caller, id.as_str()).await.unwrap();
    assert_eq!((shown.status, shown.reason.as_deref()), (SnapshotStatus::Failed, Some("the disk is full")));
    assert!(matches!(
        scene.snapshots.get(&scene.api.caller, "snap-01234567").await,
        Err(SnapshotError::NoSnapshot(_))
    ));
    scene.stop.send(true).unwrap();
}
