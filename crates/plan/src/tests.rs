use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::assignment::Decision;
use model::host::{Host, Resources};
use model::network::{Cidr, Subnet};
use model::spec::{Isolation, TaskSpec};
use model::status::{DesiredStatus, StopCause, StopCode, TaskStatus};
use model::task::{StopRequest, Task, TaskNetwork};
use model::{AccountId, ClusterName, HostId, Region, SubnetId, TaskId, Timestamp, VpcId};

use super::*;

fn subnet(prefix_len: u8) -> Subnet {
    Subnet {
        id: SubnetId::parse("subnet-00000001").unwrap(),
        vpc: VpcId::parse("vpc-00000001").unwrap(),
        vpc_cidr: Cidr { base: Ipv4Addr::new(172, 31, 0, 0), prefix_len: 16 },
        cidr: Cidr { base: Ipv4Addr::new(172, 31, 0, 0), prefix_len },
        availability_zone: "eu-central-1a".into(),
    }
}

fn pools(prefix_len: u8) -> BTreeMap<SubnetId, AddressPool> {
    let subnet = subnet(prefix_len);
    BTreeMap::from([(subnet.id.clone(), AddressPool::new(subnet))])
}

fn host(id: &str, memory_mib: u64) -> HostView {
    HostView {
        host: Host {
            id: HostId::parse(id).unwrap(),
            incarnation: "1".into(),
            capacity: Resources { cpu_units: 100_000, memory_mib, storage_gib: 10_000 },
            isolations: vec![Isolation::Container],
            architecture: "amd64".into(),
            connected_at: Timestamp(0),
        },
        used: Resources::default(),
    }
}

fn task(n: u128) -> PendingTask {
    let intent = Task {
        id: TaskId::from_random(n),
        account: AccountId::parse("123456789012").unwrap(),
        region: Region::parse("eu-central-1").unwrap(),
        cluster: ClusterName::parse("default").unwrap(),
        spec: TaskSpec {
            family: "web".into(),
            revision: 1,
            cpu_units: 256,
            memory_mib: 512,
            ephemeral_storage_gib: 20,
            volumes: vec![],
            containers: vec![],
            share_pid_namespace: false,
            architecture: "amd64".into(),
            isolation: Isolation::Container,
            snapshot: None,
        },
        desired: DesiredStatus::Running,
        created_at: Timestamp(1),
        stop: None,
        network: TaskNetwork {
            subnets: vec![subnet(24).id],
            security_groups: vec![],
            assign_public_ip: false,
        },
        capacity_provider: None,
        launch_type: Some("FARGATE".into()),
        platform_version: "1.4.0".into(),
        group: "family:web".into(),
        started_by: None,
        client_token: None,
        enable_execute_command: false,
        overrides: serde_json::Value::Null,
        tags: BTreeMap::new(),
    };
    PendingTask { intent, assignment: None, observed: None, obstacle: None }
}

fn run(tasks: Vec<PendingTask>, hosts: Vec<HostView>, pools: &BTreeMap<SubnetId, AddressPool>) -> Plan {
    let view = View { tasks, ended: vec![], hosts, subnets: pools };
    plan(&view, Timestamp(5_000), &mut (1u128..))
}

fn refusal(plan: &Plan, index: usize) -> &str {
    match &plan.assignments[index].decision {
        Decision::Refused { cause } => &cause.reason,
        Decision::Placed { .. } => panic!("task {index} was placed"),
    }
}

#[test]
fn tasks_spread_over_hosts_and_never_share_an_address() {
    let pools = pools(24);
    let plan = run((0..10).map(task).collect(), vec![host("a", 8192), host("b", 8192)], &pools);
    let mut by_host = BTreeMap::new();
    let mut addresses = std::collections::BTreeSet::new();
    for assignment in &plan.assignments {
        let Decision::Placed { host, eni, .. } = &assignment.decision else { panic!("{assignment:?}") };
        *by_host.entry(host.as_str().to_owned()).or_insert(0) += 1;
        assert!(addresses.insert(eni.address), "{} was given twice", eni.address);
        assert!(eni.address > Ipv4Addr::new(172, 31, 0, 3), "{} is reserved", eni.address);
    }
    assert_eq!(by_host, BTreeMap::from([("a".into(), 5), ("b".into(), 5)]));
}

#[test]
fn a_full_host_refuses_in_fargates_words() {
    let pools = pools(24);
    let plan = run((0..3).map(task).collect(), vec![host("a", 1024)], &pools);
    assert!(matches!(plan.assignments[1].decision, Decision::Placed { .. }));
    assert_eq!(refusal(&plan, 2), placement::NO_CAPACITY);
}

#[test]
fn a_task_goes_only_where_its_architecture_and_isolation_are() {
    let pools = pools(24);
    let mut arm = task(1);
    arm.intent.spec.architecture = "arm64".into();
    let mut vm = task(2);
    vm.intent.spec.isolation = Isolation::Microvm;
    let plan = run(vec![arm, vm], vec![host("a", 8192)], &pools);
    assert_eq!(refusal(&plan, 0), format!("{}. No host runs programs for arm64.", placement::NO_CAPACITY));
    let insisting = "The task insists on the isolation 'microvm', which no host has.";
    assert_eq!(refusal(&plan, 1), format!("{}. {insisting}", placement::NO_CAPACITY));
}

#[test]
fn a_task_larger_than_any_host_is_told_so() {
    let pools = pools(24);
    let plan = run(vec![task(1)], vec![host("a", 511), host("b", 256)], &pools);
    let told = refusal(&plan, 0);
    assert!(told.starts_with(placement::NO_CAPACITY), "{told}");
    assert!(
        told.ends_with("256 CPU units, 512 MiB of memory and 20 GiB of storage are more than any host has."),
        "{told}"
    );
}

#[test]
fn a_full_subnet_refuses_and_a_freed_address_comes_back() {
    // A /28 has 16 addresses; five are reserved.
    let mut pools = pools(28);
    let plan = run((0..12).map(task).collect(), vec![host("a", 1 << 20)], &pools);
    let placed: Vec<Ipv4Addr> = plan
        .assignments
        .iter()
        .filter_map(|a| match &a.decision {
            Decision::Placed { eni, .. } => Some(eni.address),
            Decision::Refused { .. } => None,
        })
        .collect();
    assert_eq!(placed.len(), 11);
    assert_eq!(refusal(&plan, 11), addresses::NO_ADDRESS);

    let pool = pools.values_mut().next().unwrap();
    placed.iter().for_each(|a| pool.take(*a));
    pool.release(placed[3]);
    let plan = run(vec![task(99)], vec![host("a", 1 << 20)], &pools);
    let Decision::Placed { eni, .. } = &plan.assignments[0].decision else { panic!() };
    assert_eq!(eni.address, placed[3]);
}

#[test]
fn stopping_a_task_that_no_host_has_refuses_it_with_the_users_reason() {
    let mut stopped = task(1);
    stopped.intent.desired = DesiredStatus::Stopped;
    let cause = StopCause { code: StopCode::UserInitiated, reason: "enough".into() };
    stopped.intent.stop = Some(StopRequest { at: Timestamp(3), cause });
    let pools = pools(24);
    let plan = run(vec![stopped], vec![host("a", 8192)], &pools);
    assert_eq!(refusal(&plan, 0), "enough");
}

#[test]
fn stopping_a_placed_task_keeps_its_place_and_happens_once() {
    let pools = pools(24);
    let mut placed = task(1);
    placed.assignment = Some(run(vec![task(1)], vec![host("a", 8192)], &pools).assignments.remove(0));
    placed.intent.desired = DesiredStatus::Stopped;
    let plan = run(vec![placed.clone()], vec![], &pools);
    let Decision::Placed { host, stop: Some(stop), .. } = &plan.assignments[0].decision else { panic!() };
    assert_eq!((host.as_str(), stop.at), ("a", Timestamp(5_000)));

    placed.assignment = Some(plan.assignments[0].clone());
    assert_eq!(run(vec![placed.clone()], vec![], &pools).assignments, vec![]);
    placed.observed = Some(TaskStatus::Stopped);
    assert_eq!(run(vec![placed], vec![], &pools).assignments, vec![]);
}

#[test]
fn an_obstacle_refuses_the_task() {
    let mut blocked = task(1);
    blocked.obstacle = Some(StopCause { code: StopCode::TaskFailedToStart, reason: "no log group".into() });
    let pools = pools(24);
    assert_eq!(refusal(&run(vec![blocked], vec![host("a", 8192)], &pools), 0), "no log group");
}

#[test]
fn stopped_tasks_are_forgotten_after_an_hour() {
    let pools = pools(24);
    let ended = vec![(TaskId::from_random(1), Timestamp(0)), (TaskId::from_random(2), Timestamp(1))];
    let view = View { tasks: vec![], ended, hosts: vec![], subnets: &pools };
    let plan = plan(&view, Timestamp(3_600_000), &mut (1u128..));
    assert_eq!(plan.forget, vec![TaskId::from_random(1)]);
}

#[test]
fn a_task_from_a_snapshot_goes_where_the_snapshot_is() {
    use model::SnapshotId;
    use model::snapshot::SnapshotSource;
    let pools = pools(24);
    let from = |n, host: &str| {
        let mut task = task(n);
        task.intent.spec.snapshot =
            Some(SnapshotSource { id: SnapshotId::from_random(1), host: HostId::parse(host).unwrap() });
        task
    };
    // Where there is the least room, and where there is no host any more.
    let hosts = vec![host("a", 8192), host("b", 1024)];
    let plan = run(vec![from(1, "b"), from(2, "b"), from(3, "b"), from(4, "c")], hosts, &pools);
    for index in [0, 1] {
        let Decision::Placed { host, .. } = &plan.assignments[index].decision else { panic!("{plan:?}") };
        assert_eq!(host.as_str(), "b");
    }
    assert_eq!(refusal(&plan, 2), placement::NO_CAPACITY);
    assert_eq!(
        refusal(&plan, 3),
        "The host that keeps the snapshot snap-00000000000000001 is not there any more."
    );
}
