//! Running containers: what a program in one sees, and how it ends.

mod common;

use std::fs;

use common::TestSandbox;
use model::sandbox::{Layer, SandboxPhase, ToSupervisor};
use model::spec::{MountSpec, Tmpfs, Ulimit, VolumeSpec, VolumesFrom};
use model::status::{ContainerStatus, StopCause, StopCode};

#[test]
fn a_program_runs_and_its_exit_code_is_known() {
    let mut sandbox = TestSandbox::start();
    let app = sandbox.shell("app", "echo hello; id; exit 7");
    sandbox.run_to_end(vec![app]);
    assert_eq!(sandbox.text("app"), "hello\nuid=0(root) gid=0(root) groups=0(root)");
    let state = sandbox.container("app");
    assert_eq!((state.exit_code, state.status, state.pid), (Some(7), ContainerStatus::Stopped, None));
    assert!(state.started_at <= state.finished_at && state.runtime_id.is_some());
    let stop = sandbox.state.stop.clone().unwrap();
    assert_eq!(stop.code, StopCode::EssentialContainerExited);
    assert_eq!(stop.reason, "Essential container in task exited");
    // What an agent finds when the supervisor is gone is what it was told.
    let file = fs::read(sandbox.run_dir().join("state.json")).unwrap();
    assert_eq!(serde_json::from_slice::<model::sandbox::SandboxState>(&file).unwrap(), sandbox.state);
    sandbox.release();
    assert!(common::cgroup_dirs(&format!("{}/app", sandbox.cgroup_parent)).is_empty());
}

#[test]
fn a_signal_is_an_exit_code_above_128() {
    assert_eq!(TestSandbox::shell_output("sh -c 'kill -9 $$'; exit $?").1, 137);
}

#[test]
fn the_environment_is_the_images_and_the_definitions() {
    let (text, _) = TestSandbox::output_of("env | sort; pwd; hostname", |container| {
        container.image.env = vec!["A=image".into(), "B=image".into()];
        container.spec.environment = vec![("B".into(), "definition".into())];
        container.extra_environment = vec![("C".into(), "platform".into())];
        container.image.working_dir = "/srv/app".into();
    });
    assert_eq!(
        text,
        "A=image\nB=definition\nC=platform\nHOME=/root\nHOSTNAME=ip-10-0-0-5.ec2.internal\n\
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/srv/app\nSHLVL=1\n/srv/app\n\
         ip-10-0-0-5.ec2.internal"
    );
}

#[test]
fn users_are_resolved_in_the_image() {
    let (text, code) = TestSandbox::output_of(
        "id; echo $HOME; echo x > /dev/stdout; cat /proc/self/status | grep CapEff",
        |container| {
            container.spec.user = Some("app".into());
        },
    );
    assert_eq!(
        (text.as_str(), code),
        (
            "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n/home/app\nx\nCapEff:\t0000000000000000",
            0
        )
    );
    let (text, _) =
        TestSandbox::output_of("id -u; id -g; id -G", |container| container.image.user = "77:88".into());
    assert_eq!(text, "77\n88\n88");
}

/// Runs a container that cannot start: its reason and exit code.
fn failed_start(change: impl FnOnce(&mut model::sandbox::SandboxContainer)) -> (String, Option<i32>) {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell("app", "true");
    change(&mut app);
    sandbox.run_to_end(vec![app]);
    let stop = sandbox.state.stop.clone().unwrap();
    assert_eq!((stop.code, stop.reason.as_str()), (StopCode::TaskFailedToStart, "Task failed to start"));
    let state = sandbox.container("app").clone();
    assert_eq!((state.status, state.started_at), (ContainerStatus::Stopped, None));
    let reason = state.reason.unwrap();
    assert!(
        reason.starts_with("CannotStartContainerError: ResourceInitializationError: failed to create"),
        "{reason}"
    );
    (reason, state.exit_code)
}

#[test]
fn what_cannot_start_says_why() {
    let command = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let cases: [(&[&str], &str, i32); 5] = [
        (&["nonesuch"], "exec: \"nonesuch\": executable file not found in $PATH", 127),
        (&["/bin/nonesuch"], "exec: \"/bin/nonesuch\": stat /bin/nonesuch: no such file or directory", 127),
        (&["/etc/passwd"], "exec: \"/etc/passwd\": permission denied", 126),
        (&["/etc"], "exec: \"/etc\": is a directory", 126),
        (&["/etc/passwd/x"], "exec: \"/etc/passwd/x\": stat /etc/passwd/x: not a directory", 127),
    ];
    for (words, expected, code) in cases {
        let (reason, exit_code) = failed_start(|app| app.spec.command = command(words));
        assert!(reason.ends_with(expected), "{reason}");
        assert_eq!(exit_code, Some(code), "{reason}");
    }
    let (reason, _) = failed_start(|app| app.spec.command = None);
    assert!(reason.ends_with("no command specified"), "{reason}");
    let (reason, _) = failed_start(|app| app.spec.user = Some("nobody".into()));
    assert!(reason.ends_with("unable to find user nobody: no matching entries in passwd file"), "{reason}");
    let (reason, _) = failed_start(|app| app.spec.working_directory = Some("/etc/passwd/x".into()));
    assert!(reason.ends_with("mkdir /etc/passwd/x: not a directory"), "{reason}");
    let (reason, _) =
        failed_start(|app| app.layers = vec![Layer::Directory { path: "/nonexistent/layer".into() }]);
    assert!(reason.contains("/nonexistent/layer"), "{reason}");
    let (reason, _) =
        failed_start(|app| app.spec.sysctls = vec![("kernel.core_pattern".into(), "|/x".into())]);
    assert!(reason.contains("kernel.core_pattern"), "{reason}");
}

#[test]
fn a_program_of_another_architecture_says_so_in_its_log() {
    let (text, code) = TestSandbox::output_of("", |app| app.spec.command = Some(vec!["/bin/foreign".into()]));
    assert_eq!((text.as_str(), code), ("exec /bin/foreign: exec format error", 255));
}

#[test]
fn volumes_are_shared_and_take_over_the_images_content() {
    let mut sandbox = TestSandbox::start();
    let mount =
        |path: &str, read_only| MountSpec { volume: "v".into(), container_path: path.into(), read_only };
    let mut writer =
        sandbox.shell("writer", "ls -ln /data; cat /data/seed; echo shared > /data/file; touch /data/done");
    writer.spec.mounts = vec![mount("/data", false)];
    writer.spec.user = Some("app".into());
    writer.spec.essential = false;
    let mut reader = sandbox.shell(
        "reader",
        "until [ -e /mnt/v/done ]; do sleep 0.02; done; cat /mnt/v/file; touch /mnt/v/x 2>&1 || echo refused; stat -c '%u:%g %a' /mnt/v",
    );
    reader.spec.mounts = vec![mount("/mnt/v", true)];
    reader.spec.depends_on = vec![model::spec::Dependency {
        container: "writer".into(),
        condition: model::spec::DependencyCondition::Start,
    }];
    let mut follower =
        sandbox.shell("follower", "cat /mnt/v/seed; touch /mnt/v/y 2>&1 || echo refused; sleep 100");
    follower.spec.volumes_from = vec![VolumesFrom { container: "reader".into(), read_only: false }];
    follower.spec.essential = false;
    follower.spec.stop_timeout_secs = 1;
    follower.spec.depends_on = writer_started();
    let mut spec = sandbox.spec(vec![writer, reader, follower]);
    spec.volumes = vec![VolumeSpec { name: "v".into() }];
    sandbox.run(spec);
    sandbox.wait_for_end();
    let listing = sandbox.text("writer");
    assert!(listing.contains("1000     1000"), "{listing}");
    assert!(listing.ends_with("from the image"), "{listing}");
    assert_eq!(
        sandbox.text("reader"),
        "shared\ntouch: /mnt/v/x: Read-only file system\nrefused\n1000:1000 755"
    );
    assert!(sandbox.text("follower").starts_with("from the image"));
}

fn writer_started() -> Vec<model::spec::Dependency> {
    vec![model::spec::Dependency {
        container: "writer".into(),
        condition: model::spec::DependencyCondition::Start,
    }]
}

#[test]
fn an_images_volumes_are_directories_of_their_own() {
    let (text, _) = TestSandbox::output_of("cat /data/seed; grep -c ' /data ' /proc/mounts", |app| {
        app.image.volumes = vec!["/data".into()];
    });
    assert_eq!(text, "from the image\n1");
}

#[test]
fn a_readonly_root_still_has_writable_volumes_and_tmpfs() {
    let mut sandbox = TestSandbox::start();
    let mut app = sandbox.shell(
        "app",
        "touch /x 2>&1 || echo root refused; touch /t/x && touch /v/x && echo fine; df -m /t | tail -1 | awk '{print $2}'; grep ' /t ' /proc/mounts",
    );
    app.spec.readonly_root_filesystem = true;
    app.spec.mounts = vec![MountSpec { volume: "v".into(), container_path: "/v".into(), read_only: false }];
    app.spec.linux.tmpfs =
        vec![Tmpfs { container_path: "/t".into(), size_mib: 5, mount_options: vec!["noexec".into()] }];
    let mut spec = sandbox.spec(vec![app]);
    spec.volumes = vec![VolumeSpec { name: "v".into() }];
    sandbox.run(spec);
    sandbox.wait_for_end();
    let text = sandbox.text("app");
    assert!(text.starts_with("touch: /x: Read-only file system\nroot refused\nfine\n5\n"), "{text}");
    assert!(text.contains("noexec"), "{text}");
}

#[test]
fn limits_shared_memory_and_kernel_parameters() {
    let (text, _) = TestSandbox::output_of(
        "ulimit -n; ulimit -Hn; df -m /dev/shm | tail -1 | awk '{print $2}'; cat /proc/sys/net/ipv4/tcp_fin_timeout; cat /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        |app| {
            app.spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1234, hard: 2345 }];
            app.spec.linux.shared_memory_mib = Some(7);
            let parameters =
                [("net.ipv4.tcp_fin_timeout", "777"), ("kernel.shmmni", "99"), ("fs.mqueue.msg_max", "17")];
            app.spec.sysctls = parameters.map(|(name, value)| (name.into(), value.into())).into();
        },
    );
    assert_eq!(text, "1234\n2345\n7\n777\n99\n17\n0");
}

#[test]
fn names_are_resolved_by_generated_files() {
    let (text, _) = TestSandbox::output_of(
        "cat /etc/resolv.conf /etc/hostname; grep -e 10.0 -e localhost /etc/hosts | head -9; echo more >> /etc/hosts && echo writable",
        |app| app.spec.extra_hosts = vec![("db".into(), "10.0.0.9".into())],
    );
    for line in [
        "nameserver 10.0.0.2",
        "search ec2.internal",
        "ip-10-0-0-5.ec2.internal",
        "127.0.0.1\tlocalhost",
        "10.0.0.9\tdb",
        "10.0.0.5\tip-10-0-0-5.ec2.internal ip-10-0-0-5",
        "writable",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }
}

#[test]
fn containers_share_loopback_and_nothing_else() {
    let mut sandbox = TestSandbox::start();
    let mut server =
        sandbox.shell("server", "echo pong | nc -l -p 8080; ls /proc | grep -c '^[0-9]'; ipcs -m | wc -l");
    server.spec.essential = false;
    let client = sandbox.shell("client", "until nc 127.0.0.1 8080 </dev/null; do sleep 0.02; done");
    sandbox.run_to_end(vec![server, client]);
    assert_eq!(sandbox.text("client").lines().last(), Some("pong"));
}

#[test]
fn a_stop_before_the_task_keeps_it_from_starting() {
    let mut sandbox = TestSandbox::start();
    let cause = StopCause { code: StopCode::UserInitiated, reason: "never mind".into() };
    sandbox.say(&ToSupervisor::Stop { cause: cause.clone() });
    sandbox.wait("the end", |sandbox| sandbox.state.phase == SandboxPhase::Ended);
    let app = sandbox.shell("app", "echo ran");
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec);
    sandbox.wait("the task", |sandbox| sandbox.state.containers.len() == 1);
    assert_eq!(sandbox.container("app").status, ContainerStatus::Stopped);
    assert_eq!(sandbox.container("app").started_at, None);
    assert_eq!(sandbox.state.stop, Some(cause));
    sandbox.release();
}

#[test]
fn the_hosts_links_lead_where_they_lead_on_the_host() {
    let mut sandbox = TestSandbox::start();
    let link = sandbox.dir.path().join("link");
    std::os::unix::fs::symlink(sandbox.dir.path(), &link).unwrap();
    let mut app = sandbox.shell("app", "echo found");
    app.layers = vec![Layer::Directory { path: link.join("layer") }];
    let mut spec = sandbox.spec(vec![app]);
    spec.scratch = link.join("disk");
    sandbox.run(spec);
    sandbox.wait_for_end();
    assert_eq!(sandbox.text("app"), "found");
}

#[test]
fn another_disk_than_the_mounted_one_is_refused() {
    let mut sandbox = TestSandbox::start();
    let app = sandbox.shell("app", "true");
    let mut spec = sandbox.spec(vec![app]);
    spec.scratch = sandbox.layer().join("etc/passwd");
    sandbox.run(spec);
    sandbox.wait_for_end();
    let stop = sandbox.state.stop.clone().unwrap();
    assert_eq!(stop.code, StopCode::TaskFailedToStart);
    assert!(
        stop.reason.starts_with("ResourceInitializationError: the sandbox has another disk"),
        "{}",
        stop.reason
    );
}

#[test]
fn a_container_may_be_called_supervisor() {
    let mut sandbox = TestSandbox::start();
    let containers = vec![sandbox.shell("supervisor", "echo hello")];
    sandbox.run_to_end(containers);
    assert_eq!(sandbox.text("supervisor"), "hello");
}

#[test]
fn a_disk_that_is_full_hurts_the_task_only() {
    let (text, code) = TestSandbox::shell_output(
        "dd if=/dev/zero of=/fill bs=1M count=400 2>&1 | grep -o 'No space.*'; exit 3",
    );
    assert_eq!((text.as_str(), code), ("No space left on device", 3));
}

#[test]
fn works_with_one_malloc_arena() {
    let mut sandbox = TestSandbox::start_with(&[("MALLOC_ARENA_MAX", "1")]);
    let containers = (0..5).map(|number| sandbox.shell(&format!("c{number}"), "exit 0")).collect();
    sandbox.run_to_end(containers);
}
