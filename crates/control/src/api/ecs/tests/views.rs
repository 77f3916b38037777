//! A task's three records in one answer.

use std::net::Ipv4Addr;

use model::assignment::{Assignment, Decision, Stopping};
use model::network::{Eni, Mac};
use model::observation::{ContainerObservation, Observation, TaskTimes};
use model::status::{ContainerStatus, StopCause, StopCode};
use model::{EniId, HealthStatus, HostId, SubnetId, TaskStatus, Timestamp, VpcId};
use serde_json::{Value, json};

use super::{Fixture, SUBNET, call, container, definition, fixture, run_request};
use crate::api::ecs::task_records::TaskRecords;
use crate::api::ecs::task_view;

async fn started(f: &Fixture) -> TaskRecords {
    let check = json!({ "healthCheck": { "command": ["CMD-SHELL", "true"] } });
    let mut side = container(json!({ "essential": false }));
    side["name"] = json!("side");
    let both = definition(json!({ "containerDefinitions": [container(check), side] }));
    call!(f, register_task_definition, both).unwrap();
    let task = call!(f, run_task, run_request(json!({}))).unwrap().tasks.unwrap().remove(0);
    let task = super::tasks::intent(f, task.task_arn.as_deref().unwrap()).await;
    TaskRecords { task, assignment: None, observation: None }
}

fn placed(records: &mut TaskRecords, stop: Option<Stopping>) {
    records.assignment = Some(Assignment {
        task: records.task.id.clone(),
        decided_at: Timestamp(1_700_000_001_000),
        decision: Decision::Placed {
            host: HostId::parse("h1").unwrap(),
            eni: Eni {
                id: EniId::from_random(7),
                vpc: VpcId::parse("vpc-0123456789abcdef0").unwrap(),
                subnet: SubnetId::parse(SUBNET).unwrap(),
                mac: Mac::of_address(Ipv4Addr::new(172, 31, 0, 5)),
                address: Ipv4Addr::new(172, 31, 0, 5),
                prefix_len: 20,
                gateway: Ipv4Addr::new(172, 31, 0, 1),
                resolver: Ipv4Addr::new(172, 31, 0, 2),
                private_dns_name: "ip-172-31-0-5.eu-central-1.compute.internal".to_owned(),
            },
            stop,
        },
    });
}

fn observe(
    records: &mut TaskRecords,
    sequence: u64,
    status: TaskStatus,
    times: TaskTimes,
) -> &mut Observation {
    let containers = ["app", "side"].map(ContainerObservation::pending).to_vec();
    records.observation =
        Some(Observation { task: records.task.id.clone(), sequence, status, times, containers, stop: None });
    records.observation.as_mut().unwrap()
}

fn view(f: &Fixture, records: &TaskRecords) -> Value {
    serde_json::to_value(task_view::view(records, &f.ecs.default_subnet, false).unwrap()).unwrap()
}

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp((1_700_000_000 + seconds) * 1000))
}

fn cause(code: StopCode, reason: &str) -> StopCause {
    StopCause { code, reason: reason.to_owned() }
}

#[tokio::test]
async fn a_task_is_shown_through_its_life() {
    let f = fixture().await;
    let mut records = started(&f).await;
    let provisioning = view(&f, &records);
    placed(&mut records, None);
    let attaching = view(&f, &records);
    assert_eq!(attaching["lastStatus"], "PROVISIONING");
    assert_eq!(attaching["attachments"][0]["status"], "ATTACHING");

    let times = TaskTimes {
        connected_at: at(2),
        pull_started_at: at(3),
        pull_stopped_at: at(4),
        started_at: at(5),
        ..TaskTimes::default()
    };
    let observation = observe(&mut records, 4, TaskStatus::Running, times);
    for container in &mut observation.containers {
        container.status = ContainerStatus::Running;
        container.runtime_id = Some(format!("{}-runtime", container.name));
        container.image_digest = Some("sha256:abc".to_owned());
    }
    observation.containers[0].health = HealthStatus::Healthy;
    let running = view(&f, &records);
    for (member, want) in [
        ("lastStatus", json!("RUNNING")),
        ("desiredStatus", json!("RUNNING")),
        ("connectivity", json!("CONNECTED")),
        ("connectivityAt", json!(1_700_000_002.0)),
        ("pullStartedAt", json!(1_700_000_003.0)),
        ("pullStoppedAt", json!(1_700_000_004.0)),
        ("startedAt", json!(1_700_000_005.0)),
        ("healthStatus", json!("HEALTHY")),
        ("version", json!(6)),
    ] {
        assert_eq!(running[member], want, "{member}");
    }
    let attachment = &running["attachments"][0];
    assert_eq!(attachment["status"], "ATTACHED");
    assert_eq!(
        attachment["details"],
        json!([
            { "name": "subnetId", "value": SUBNET },
            { "name": "networkInterfaceId", "value": "eni-00000000000000007" },
            { "name": "macAddress", "value": "02:c0:ac:1f:00:05" },
            { "name": "privateDnsName", "value": "ip-172-31-0-5.eu-central-1.compute.internal" },
            { "name": "privateIPv4Address", "value": "172.31.0.5" },
        ])
    );
    let app = &running["containers"][0];
    assert_eq!((&app["lastStatus"], &app["healthStatus"]), (&json!("RUNNING"), &json!("HEALTHY")));
    assert_eq!((&app["runtimeId"], &app["imageDigest"]), (&json!("app-runtime"), &json!("sha256:abc")));
    let interface = json!([{ "attachmentId": attachment["id"], "privateIpv4Address": "172.31.0.5" }]);
    assert_eq!(app["networkInterfaces"], interface);
    // Without a health check a container's health is not known, whatever was seen.
    assert_eq!(running["containers"][1]["healthStatus"], "UNKNOWN");
    // Identities that are in no record stay.
    assert_eq!(attachment["id"], provisioning["attachments"][0]["id"]);
    assert_eq!(app["containerArn"], provisioning["containers"][0]["containerArn"]);
    assert_ne!(app["containerArn"], running["containers"][1]["containerArn"]);

    let observation = records.observation.as_mut().unwrap();
    observation.sequence = 8;
    observation.stop = Some(cause(StopCode::EssentialContainerExited, "Essential container in task exited"));
    observation.times.stopping_at = at(9);
    observation.status = TaskStatus::Deprovisioning;
    observation.containers[0].status = ContainerStatus::Stopped;
    observation.containers[0].exit_code = Some(137);
    observation.containers[0].reason =
        Some("OutOfMemoryError: Container killed due to memory usage".to_owned());
    let ending = view(&f, &records);
    assert_eq!(
        (&ending["desiredStatus"], &ending["lastStatus"]),
        (&json!("STOPPED"), &json!("DEPROVISIONING"))
    );
    assert_eq!(ending["attachments"][0]["status"], "DETACHING");

    let observation = records.observation.as_mut().unwrap();
    observation.status = TaskStatus::Stopped;
    observation.times.execution_stopped_at = at(10);
    observation.times.stopped_at = at(11);
    let stopped = view(&f, &records);
    for (member, want) in [
        ("stopCode", json!("EssentialContainerExited")),
        ("stoppedReason", json!("Essential container in task exited")),
        ("stoppingAt", json!(1_700_000_009.0)),
        ("executionStoppedAt", json!(1_700_000_010.0)),
        ("stoppedAt", json!(1_700_000_011.0)),
    ] {
        assert_eq!(stopped[member], want, "{member}");
    }
    assert_eq!(stopped["attachments"][0]["status"], "DELETED");
    assert_eq!(stopped["containers"][0]["exitCode"], 137);
    assert!(stopped["containers"][0]["reason"].as_str().unwrap().starts_with("OutOfMemoryError"));
    assert_eq!(stopped["containers"][1]["lastStatus"], "STOPPED");
}

#[tokio::test]
async fn a_refused_task_is_stopped_with_its_cause() {
    let f = fixture().await;
    let mut records = started(&f).await;
    let refused = cause(StopCode::TaskFailedToStart, "no capacity");
    let decision = Decision::Refused { cause: refused };
    records.assignment =
        Some(Assignment { task: records.task.id.clone(), decided_at: Timestamp(5000), decision });
    let shown = view(&f, &records);
    for (member, want) in [
        ("lastStatus", "STOPPED"),
        ("desiredStatus", "STOPPED"),
        ("stopCode", "TaskFailedToStart"),
        ("stoppedReason", "no capacity"),
    ] {
        assert_eq!(shown[member], want, "{member}");
    }
    assert_eq!((&shown["stoppingAt"], &shown["stoppedAt"]), (&json!(5.0), &json!(5.0)));
    assert_eq!(shown["attachments"][0]["status"], "DELETED");
    assert_eq!(shown["containers"][0]["lastStatus"], "STOPPED");
}

#[tokio::test]
async fn what_the_host_saw_says_why_a_task_ended() {
    let f = fixture().await;
    let mut records = started(&f).await;
    let spot = Stopping { at: Timestamp(7000), cause: cause(StopCode::SpotInterruption, "spot") };
    placed(&mut records, Some(spot));
    let decided = view(&f, &records);
    assert_eq!((&decided["stopCode"], &decided["stoppingAt"]), (&json!("SpotInterruption"), &json!(7.0)));
    assert_eq!(decided["desiredStatus"], "STOPPED");
    let observation = observe(&mut records, 1, TaskStatus::Running, TaskTimes::default());
    observation.stop = Some(cause(StopCode::EssentialContainerExited, "first"));
    assert_eq!(view(&f, &records)["stoppedReason"], "first");
}

#[tokio::test]
async fn health_is_that_of_essential_containers_with_checks() {
    let f = fixture().await;
    let mut records = started(&f).await;
    placed(&mut records, None);
    for (app, side, want) in [
        (HealthStatus::Unknown, HealthStatus::Healthy, "UNKNOWN"),
        (HealthStatus::Healthy, HealthStatus::Unhealthy, "HEALTHY"),
        (HealthStatus::Unhealthy, HealthStatus::Healthy, "UNHEALTHY"),
    ] {
        let observation = observe(&mut records, 1, TaskStatus::Running, TaskTimes::default());
        observation.containers[0].health = app;
        observation.containers[1].health = side;
        assert_eq!(view(&f, &records)["healthStatus"], want);
    }
    records.task.spec.containers[0].health_check = None;
    assert_eq!(view(&f, &records)["healthStatus"], "UNKNOWN");
}
