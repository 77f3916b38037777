//! Order, ends, restarts, stops, health, logs, and what survives whom.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{DEADLINE, TestSandbox, cgroup_dirs, is_alive};
use model::HealthStatus;
use model::sandbox::{SandboxContainer, SandboxPhase, ToSupervisor};
use model::spec::{Dependency, DependencyCondition, HealthCheck, LogMode, RestartPolicy};
use model::status::{ContainerStatus, StopCause, StopCode};

fn on(container: &str, condition: DependencyCondition) -> Vec<Dependency> {
    vec![Dependency { container: container.into(), condition }]
}

fn user_stop() -> ToSupervisor {
    ToSupervisor::Stop {
        cause: StopCause { code: StopCode::UserInitiated, reason: "Task stopped by user".into() },
    }
}

fn not_essential(mut container: SandboxContainer) -> SandboxContainer {
    container.spec.essential = false;
    container
}

#[test]
fn containers_start_in_the_order_of_their_dependencies() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "true");
    app.spec.depends_on = on("migrate", DependencyCondition::Success);
    let mut migrate = not_essential(sandbox.shell("migrate", "true"));
    migrate.spec.depends_on = on("log", DependencyCondition::Start);
    migrate.spec.depends_on.extend(on("prepare", DependencyCondition::Complete));
    let prepare = not_essential(sandbox.shell("prepare", "exit 9"));
    let log = not_essential(sandbox.shell("log", "trap 'exit 0' TERM; while :; do sleep 0.05; done"));
    sandbox.run_to_end(vec![app, migrate, prepare, log]);
    let started = |name: &str| sandbox.container(name).started_at.unwrap();
    let finished = |name: &str| sandbox.container(name).finished_at.unwrap();
    assert!(started("log") <= started("migrate") && finished("prepare") <= started("migrate"));
    assert!(finished("migrate") <= started("app"));
    assert!(finished("app") <= finished("log"));
    assert_eq!(sandbox.container("prepare").exit_code, Some(9));
    assert_eq!(sandbox.container("log").exit_code, Some(0));
}

#[test]
fn a_failed_dependency_stops_the_task() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "true");
    app.spec.depends_on = on("migrate", DependencyCondition::Success);
    let migrate = not_essential(sandbox.shell("migrate", "exit 1"));
    sandbox.run_to_end(vec![app, migrate]);
    let state = sandbox.container("app");
    assert_eq!((state.started_at, state.exit_code), (None, None));
    let reason = state.reason.clone().unwrap();
    assert!(
        reason.contains("[migrate] for target [app] as dependency did not exit successfully"),
        "{reason}"
    );
    assert_eq!(sandbox.state.stop.clone().unwrap().code, StopCode::TaskFailedToStart);
}

#[test]
fn a_start_timeout_stops_the_task() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "true");
    app.spec.depends_on = on("slow", DependencyCondition::Complete);
    let mut slow = not_essential(sandbox.shell("slow", "sleep 1000"));
    slow.spec.start_timeout_secs = Some(1);
    slow.spec.stop_timeout_secs = 0;
    sandbox.run_to_end(vec![app, slow]);
    assert!(sandbox.container("app").reason.clone().unwrap().ends_with("has timed out."));
    assert_eq!(sandbox.container("slow").exit_code, Some(137));
}

fn check(script: &str) -> Option<HealthCheck> {
    Some(HealthCheck {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        interval_secs: 1,
        timeout_secs: 1,
        retries: 1,
        start_period_secs: 0,
    })
}

#[test]
fn health_checks_run_inside_as_the_containers_user() {
    let mut sandbox = TestSandbox::start();
    let mut db = sandbox.shell("db", "sleep 1000");
    db.spec.user = Some("app".into());
    db.spec.essential = false;
    db.spec.stop_timeout_secs = 0;
    // Everything that an intruder would look for: user, groups, capabilities, filter, root.
    db.spec.health_check = check(
        "cd /tmp; id > id; pwd > /tmp/pwd; grep -e Seccomp: -e NoNew -e Cap -e Groups /proc/self/status > status; \
         ls / > root; cat /proc/self/cgroup > cgroup; readlink /proc/self/ns/* > mine; readlink /proc/1/ns/* > its; \
         cat /proc/self/oom_score_adj > score; ls /proc/self/fd | wc -l > fds; \
         unshare -U true || touch unshare-refused; test -e /tmp/down && exit 1; touch checked",
    );
    let mut app = sandbox.shell("app", "sleep 1000");
    app.spec.depends_on = on("db", DependencyCondition::Healthy);
    app.spec.stop_timeout_secs = 0;
    let spec = sandbox.spec(vec![db, app]);
    sandbox.run(spec);
    sandbox.wait("health", |sandbox| sandbox.state.phase == SandboxPhase::Running);
    assert_eq!(sandbox.container("db").health, HealthStatus::Healthy);
    assert_eq!(sandbox.container("app").health, HealthStatus::Unknown);
    let root = format!("/proc/{}/root", sandbox.container("db").pid.unwrap());
    let read = |name: &str| fs::read_to_string(format!("{root}/tmp/{name}")).unwrap();
    assert_eq!(read("id"), "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n");
    let status = read("status");
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(
        status.contains("CapEff:\t0000000000000000") && status.contains("CapPrm:\t0000000000000000"),
        "{status}"
    );
    assert!(
        status.contains("CapBnd:\t00000000a80425fb") && status.contains("CapInh:\t0000000000000000"),
        "{status}"
    );
    assert!(status.contains("Groups:\t1000 2000"), "{status}");
    assert_eq!(read("root"), "bin\ndata\ndev\netc\nhome\nproc\nsys\ntmp\n");
    assert_eq!(read("mine"), read("its"));
    assert_eq!(read("pwd"), "/tmp\n");
    assert!(fs::exists(format!("{root}/tmp/unshare-refused")).unwrap());
    // ls has its directory open beside the standard three.
    assert_eq!(read("fds"), "4\n");
    let cgroups =
        fs::read_to_string(format!("/proc/{}/cgroup", sandbox.container("db").pid.unwrap())).unwrap();
    assert!(cgroups.contains(&format!("{}/db", sandbox.cgroup_parent)), "{cgroups}");

    fs::write(format!("{root}/tmp/down"), "").unwrap_or_else(|_| {
        // The file system does not know our ids; its root can.
        fs::remove_file(format!("{root}/tmp/down")).ok();
    });
    if fs::exists(format!("{root}/tmp/down")).unwrap() {
        sandbox.wait("sickness", |sandbox| sandbox.container("db").health == HealthStatus::Unhealthy);
        assert_eq!(sandbox.container("db").status, ContainerStatus::Running);
        fs::remove_file(format!("{root}/tmp/down")).unwrap();
        sandbox.wait("recovery", |sandbox| sandbox.container("db").health == HealthStatus::Healthy);
    }
    sandbox.say(&user_stop());
    sandbox.wait_for_end();
}

#[test]
fn health_checks_that_hang_or_fail_are_unhealthy_and_the_task_goes_on() {
    let mut sandbox = TestSandbox::start();
    let mut hangs = sandbox.shell("hangs", "sleep 1000");
    hangs.spec.health_check = check("sleep 1000");
    let mut missing = sandbox.shell("missing", "sleep 1000");
    missing.spec.health_check = check("true");
    missing.spec.health_check.as_mut().unwrap().command = vec!["/nonesuch".into()];
    for container in [&mut hangs, &mut missing] {
        container.spec.stop_timeout_secs = 0;
    }
    let spec = sandbox.spec(vec![hangs, missing]);
    sandbox.run(spec);
    sandbox.wait("sickness", |sandbox| {
        let sick = |container: &model::sandbox::ContainerState| container.health == HealthStatus::Unhealthy;
        sandbox.state.containers.len() == 2 && sandbox.state.containers.iter().all(sick)
    });
    assert_eq!(sandbox.state.phase, SandboxPhase::Running);
    sandbox.say(&user_stop());
    sandbox.wait_for_end();
    assert_eq!(sandbox.container("hangs").exit_code, Some(137));
}

#[test]
fn stopping_asks_in_reverse_order_and_then_kills() {
    let mut sandbox = TestSandbox::start();
    let polite = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done";
    let db = sandbox.shell("db", polite);
    let mut app = sandbox.shell("app", &polite.replace("TERM", "QUIT"));
    app.image.stop_signal = "SIGQUIT".into();
    app.spec.depends_on = on("db", DependencyCondition::Start);
    let mut deaf = sandbox.shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.02; done");
    deaf.spec.stop_timeout_secs = 1;
    let spec = sandbox.spec(vec![db, app, deaf]);
    sandbox.run(spec);
    sandbox.wait("three", |sandbox| ["db", "app", "deaf"].iter().all(|name| sandbox.text(name) == "up"));
    assert_eq!(sandbox.state.phase, SandboxPhase::Running);
    sandbox.say(&user_stop());
    // The first cause stays.
    sandbox.say(&ToSupervisor::Stop {
        cause: StopCause { code: StopCode::SpotInterruption, reason: "late".into() },
    });
    sandbox.wait_for_end();
    for name in ["db", "app"] {
        assert_eq!(
            (sandbox.container(name).exit_code, sandbox.text(name).as_str()),
            (Some(3), "up\nbye"),
            "{name}"
        );
    }
    assert_eq!(sandbox.container("deaf").exit_code, Some(137));
    assert!(sandbox.container("app").finished_at <= sandbox.container("db").finished_at);
    assert_eq!(sandbox.state.stop.clone().unwrap().code, StopCode::UserInitiated);
}

#[test]
fn signals_ignored_outside_are_heard_inside() {
    let mut sandbox = TestSandbox::start_ignoring("HUP INT QUIT USR1 TERM");
    let script = "grep SigIgn /proc/self/status; trap 'exit 3' QUIT; echo up; while :; do sleep 0.02; done";
    let mut plain = sandbox.shell("plain", script);
    plain.image.stop_signal = "SIGQUIT".into();
    let mut with_init = plain.clone();
    with_init.spec.name = "with_init".into();
    with_init.spec.linux.init_process = true;
    provide_libraries(&sandbox);
    let spec = sandbox.spec(vec![plain, with_init]);
    sandbox.run(spec);
    let text = "SigIgn:\t0000000000000000\nup";
    sandbox
        .wait("both", |sandbox| ["plain", "with_init"].iter().all(|name| sandbox.text(name).ends_with("up")));
    sandbox.say(&user_stop());
    sandbox.wait_for_end();
    for name in ["plain", "with_init"] {
        assert_eq!(
            (sandbox.text(name).as_str(), sandbox.container(name).exit_code),
            (text, Some(3)),
            "{name}"
        );
    }
}

#[test]
fn memory_limits_hold_and_kills_are_told_apart() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "cat /dev/zero | head -c 200m | tail -c 190m > /dev/null; exit 137");
    app.spec.command = Some(vec!["/bin/tail".into(), "-c".into(), "300m".into(), "/dev/zero".into()]);
    app.spec.memory_mib = Some(16);
    sandbox.run_to_end(vec![app]);
    let state = sandbox.container("app");
    assert_eq!(state.exit_code, Some(137));
    assert_eq!(state.reason.as_deref(), Some("OutOfMemoryError: Container killed due to memory usage"));

    // A child's end is told of, too, even when its parent makes nothing of it.
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "tail -c 300m /dev/zero; echo child $?; exit 0");
    app.spec.memory_mib = Some(16);
    sandbox.run_to_end(vec![app]);
    let state = sandbox.container("app");
    assert_eq!(state.exit_code, Some(0));
    assert!(sandbox.text("app").lines().any(|line| line == "child 137"), "{}", sandbox.text("app"));
    assert_eq!(state.reason.as_deref(), Some("OutOfMemoryError: Container killed due to memory usage"));

    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "kill -9 $$; sleep 9");
    app.spec.command = Some(vec!["/bin/sh".into(), "-c".into(), "sh -c 'kill -9 $$'; exit 137".into()]);
    app.spec.memory_mib = Some(64);
    sandbox.run_to_end(vec![app]);
    assert_eq!(
        (sandbox.container("app").exit_code, sandbox.container("app").reason.clone()),
        (Some(137), None)
    );
}

#[test]
fn restart_policies() {
    let mut sandbox = TestSandbox::start();
    // Counts its runs on the writable layer, which a restart keeps; the third is ignored.
    let mut app =
        sandbox.shell("app", "echo run; echo . >> /count; [ $(wc -l < /count) -lt 3 ] && exit 1; exit 42");
    app.spec.restart_policy = Some(RestartPolicy { ignored_exit_codes: vec![42], attempt_period_secs: 0 });
    sandbox.run_to_end(vec![app]);
    let state = sandbox.container("app");
    assert_eq!((state.restart_count, state.exit_code), (2, Some(42)));
    assert_eq!(sandbox.text("app"), "run\nrun\nrun");

    let mut sandbox = TestSandbox::start();
    let mut early = sandbox.shell("early", "exit 1");
    early.spec.restart_policy = Some(RestartPolicy { ignored_exit_codes: vec![], attempt_period_secs: 60 });
    sandbox.run_to_end(vec![early]);
    assert_eq!(sandbox.container("early").restart_count, 0);
}

#[test]
fn an_init_reaps_forwards_and_passes_the_exit_code_on() {
    let mut sandbox = TestSandbox::start();
    provide_libraries(&sandbox);
    let mut app = sandbox.shell(
        "app",
        "cat /proc/1/comm; trap 'echo term; exit 5' TERM; (sleep 0.01 & exec sleep 0.02) & wait; \
         sleep 0.2; cat /proc/[0-9]*/stat | grep -c ') Z'; echo up; while :; do sleep 0.02; done",
    );
    app.spec.linux.init_process = true;
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec);
    sandbox.wait("the program", |sandbox| {
        sandbox.text("app").ends_with("up") || sandbox.state.phase == SandboxPhase::Ended
    });
    assert_eq!(sandbox.state.phase, SandboxPhase::Running, "{:?} {}", sandbox.state, sandbox.log());
    sandbox.say(&user_stop());
    sandbox.wait_for_end();
    assert_eq!(
        (sandbox.container("app").exit_code, sandbox.text("app").as_str()),
        (Some(5), "init\n0\nup\nterm")
    );
    let (_, code) = {
        let mut sandbox = TestSandbox::start();
        provide_libraries(&sandbox);
        let mut app = sandbox.shell("app", "kill -9 $$");
        app.spec.linux.init_process = true;
        sandbox.run_to_end(vec![app]);
        (sandbox.text("app"), sandbox.container("app").exit_code)
    };
    assert_eq!(code, Some(137));
}

/// The supervisor that users get is static; the one under test may need its libraries.
fn provide_libraries(sandbox: &TestSandbox) {
    let output = Command::new("ldd").arg(common::program()).output().unwrap();
    for path in
        String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = sandbox.layer().join(&path[1..]);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, &target).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_terminal_is_one() {
    let (text, code) = TestSandbox::output_of(
        "tty; test -t 0 && test -t 1 && echo terminal; echo $TERM; ls -l /dev/console | cut -c1",
        |app| {
            app.spec.tty = true;
            app.spec.stdin_open = true;
        },
    );
    assert_eq!((text.as_str(), code), ("/dev/pts/0\nterminal\nxterm\nc", 0));
}

#[test]
fn standard_input_is_empty_or_held_open() {
    let (text, _) = TestSandbox::shell_output("cat; echo end");
    assert_eq!(text, "end");
    let (text, code) = TestSandbox::output_of("timeout 0.3 cat 2>&1 | head -c 9; echo end", |app| {
        app.spec.stdin_open = true
    });
    assert!(text.ends_with("end") && code == 0, "{text}");
}

#[test]
fn a_shared_pid_namespace() {
    let mut sandbox = TestSandbox::start();
    let mut first = sandbox.shell("first", "sleep 1001 & exec sleep 1002");
    first.spec.essential = false;
    first.spec.stop_timeout_secs = 0;
    let mut second = sandbox.shell(
        "second",
        "f() { for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' 2>/dev/null < $p/cmdline)\" in \"sleep $1 \") echo ${p#/proc/};; esac; done; }; \
         until [ \"$(f 1001)\" ] && [ \"$(f 1002)\" ]; do sleep 0.02; done; \
         ls -A /proc/1/root /proc/1/cwd 2>&1; ls /proc/1/fd 2>/dev/null | wc -l; cat /proc/1/environ 2>/dev/null | wc -c; \
         kill $(f 1002); while [ \"$(f 1001)\" ]; do sleep 0.02; done; echo gone",
    );
    second.spec.depends_on = on("first", DependencyCondition::Start);
    let mut spec = sandbox.spec(vec![first, second]);
    spec.share_pid_namespace = true;
    sandbox.run(spec);
    sandbox.wait_for_end();
    let text = sandbox.text("second");
    assert!(text.ends_with("gone") && !text.contains("host"), "{text} {:?} {}", sandbox.state, sandbox.log());
    sandbox.release();
}

#[test]
fn output_is_complete_to_the_byte() {
    let (text, code) = TestSandbox::shell_output(
        "i=0; while [ $i -lt 200 ]; do i=$((i+1)); seq 1 9999; done; printf 'no newline'; exit 4",
    );
    let mut expected = (0..200).flat_map(|_| 1..=9999).map(|n: u32| n.to_string()).collect::<Vec<_>>();
    expected.push("no newline".into());
    assert!(text.len() > 9 << 20 && text == expected.join("\n"));
    assert_eq!(code, 4);
}

#[test]
fn output_waits_for_an_agent_that_is_away() {
    let mut sandbox = TestSandbox::start();
    let app = sandbox.shell("app", "seq 1 400000; echo done");
    let spec = sandbox.spec(vec![app]);
    sandbox.acknowledges = false;
    sandbox.run(spec);
    sandbox.wait("some logs", |sandbox| sandbox.text("app").len() > 50_000);
    sandbox.disconnect();
    sandbox.connect();
    sandbox.listen();
    // The buffer is full and the container waits: it cannot have ended.
    sandbox.wait("the first records again", |sandbox| sandbox.logs["app"].len() > 1000);
    assert_eq!(sandbox.container("app").status, ContainerStatus::Running);
    sandbox.disconnect();
    sandbox.acknowledges = true;
    sandbox.connect();
    sandbox.wait_for_end();
    let expected = (1..=400_000).map(|n: u32| n.to_string()).collect::<Vec<_>>().join("\n") + "\ndone";
    assert!(sandbox.text("app") == expected);
    assert_eq!(sandbox.container("app").log_end, 400_001);
}

#[test]
fn a_container_that_must_not_wait_loses_lines_instead() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "seq 1 100000; exit 0");
    app.spec.log.as_mut().unwrap().mode = LogMode::NonBlocking { max_buffer_bytes: 50_000 };
    sandbox.acknowledges = false;
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec);
    sandbox.wait("the end", |sandbox| sandbox.state.phase == SandboxPhase::Ended);
    assert!(sandbox.container("app").log_end < 5000);
}

#[test]
fn exits_are_found_after_the_agents_absence() {
    let mut sandbox = TestSandbox::start();
    let app = sandbox.shell("app", "until [ -e /tmp/go ]; do sleep 0.02; done; echo last words; exit 6");
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec.clone());
    sandbox.wait("the start", |sandbox| sandbox.state.phase == SandboxPhase::Running);
    let pid = sandbox.container("app").pid.unwrap();
    sandbox.disconnect();
    let root = sandbox.uid_base;
    let go = format!("/proc/{pid}/root/tmp/go");
    fs::write(&go, "").unwrap();
    std::os::unix::fs::chown(&go, Some(root), Some(root)).ok();
    let deadline = Instant::now() + DEADLINE;
    while is_alive(pid) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    sandbox.connect();
    // Said again, as an agent does that does not know whether it was heard.
    sandbox.run(spec);
    sandbox.wait_for_end();
    assert_eq!((sandbox.container("app").exit_code, sandbox.text("app").as_str()), (Some(6), "last words"));
    assert_eq!(sandbox.container("app").restart_count, 0);
    sandbox.release();
}

#[test]
fn a_killed_supervisor_leaves_nothing_running() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "setsid sleep 1000 & sleep 1000 & echo up; wait");
    app.spec.health_check = check("sleep 1000");
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec);
    sandbox.wait("output", |sandbox| sandbox.text("app") == "up");
    let pid = sandbox.container("app").pid.unwrap();
    let disk = sandbox.dir.path().join("disk");
    assert!(is_backing_a_loop_device(&disk));
    let processes: Vec<i32> = pids_of(&sandbox);
    assert!(processes.contains(&pid) && processes.len() >= 3);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sandbox.pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    sandbox.wait_for_death();
    let deadline = Instant::now() + DEADLINE;
    while processes.iter().any(|pid| is_alive(*pid))
        || is_backing_a_loop_device(&disk)
        || !pids_of(&sandbox).is_empty()
    {
        assert!(Instant::now() < deadline, "left behind: {:?}", pids_of(&sandbox));
        std::thread::sleep(Duration::from_millis(5));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(sandbox.dir.path().to_str().unwrap()));
    // What was known last is on disk.
    let state: model::sandbox::SandboxState =
        serde_json::from_slice(&fs::read(sandbox.run_dir().join("state.json")).unwrap()).unwrap();
    assert_eq!(state.container_status("app"), Some(ContainerStatus::Running));
}

trait Status {
    fn container_status(&self, name: &str) -> Option<ContainerStatus>;
}

impl Status for model::sandbox::SandboxState {
    fn container_status(&self, name: &str) -> Option<ContainerStatus> {
        self.containers.iter().find(|container| container.name == name).map(|container| container.status)
    }
}

fn pids_of(sandbox: &TestSandbox) -> Vec<i32> {
    cgroup_dirs(&format!("{}/app", sandbox.cgroup_parent))
        .iter()
        .flat_map(|dir| {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

fn is_backing_a_loop_device(disk: &std::path::Path) -> bool {
    fs::read_dir("/sys/block").unwrap().flatten().any(|device| {
        fs::read_to_string(device.path().join("loop/backing_file"))
            .is_ok_and(|backing| backing.trim().ends_with(disk.to_str().unwrap()))
    })
}

#[test]
fn release_ends_what_still_runs() {
    let mut sandbox = TestSandbox::start();
    let app = sandbox.shell("app", "trap '' TERM; echo up; while :; do sleep 0.1; done");
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec);
    sandbox.wait("output", |sandbox| sandbox.text("app") == "up");
    let pid = sandbox.container("app").pid.unwrap();
    sandbox.release();
    assert!(!is_alive(pid));
    assert!(cgroup_dirs(&format!("{}/app", sandbox.cgroup_parent)).is_empty());
}

#[test]
fn a_new_connection_replaces_the_old_and_nonsense_ends_it() {
    let mut sandbox = TestSandbox::start();
    let path = sandbox.run_dir().join("supervisor.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut intruder = std::os::unix::net::UnixStream::connect(&path).unwrap();
    std::io::Write::write_all(&mut intruder, &[0xff; 64]).unwrap();
    // The old connection has ended, and the nonsense has ended the new one.
    let deadline = Instant::now() + DEADLINE;
    while sandbox.listen() {
        assert!(Instant::now() < deadline);
    }
    sandbox.connect();
    let app = sandbox.shell("app", "echo fine");
    sandbox.run_to_end(vec![app]);
    assert_eq!(sandbox.text("app"), "fine");
}
