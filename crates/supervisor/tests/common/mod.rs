//! A sandbox for tests: the real binary, a busybox image, and an agent's end of the protocol.

#![allow(dead_code)]

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::TaskId;
use model::sandbox::{
    ContainerState, FromSupervisor, ImageConfig, Layer, LogRecord, SandboxContainer, SandboxPhase,
    SandboxSpec, SandboxState, ToSupervisor,
};
use model::spec::{ContainerSpec, LinuxSpec, LogMode, LogSpec};
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_secs(60);
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A sandbox under test. Dropping it leaves nothing, even when the test fails.
pub struct TestSandbox {
    pub dir: TempDir,
    pub pid: i32,
    pub uid_base: u32,
    pub cgroup_parent: String,
    pub state: SandboxState,
    pub logs: HashMap<String, Vec<LogRecord>>,
    /// Acknowledge log batches as they come.
    pub acknowledges: bool,
    /// The answer to a request to freeze.
    pub frozen: Option<Option<String>>,
    stream: Option<UnixStream>,
    input: Vec<u8>,
}

/// The supervisor under test: the one that cargo built, unless SUPERVISOR names another.
pub fn program() -> PathBuf {
    std::env::var_os("SUPERVISOR")
        .map_or_else(|| env!("CARGO_BIN_EXE_coracle-supervisor").into(), PathBuf::from)
}

fn number() -> u32 {
    std::process::id() % 1000 * 50 + NUMBER.fetch_add(1, Ordering::Relaxed)
}

impl TestSandbox {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts an idle sandbox with variables in its environment, and connects.
    pub fn start_with(environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program());
        command.envs(environment.iter().copied());
        Self::start_by(command)
    }

    /// Starts an idle sandbox from a process that ignores these signals, and connects.
    pub fn start_ignoring(signals: &str) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("trap '' {signals}; exec \"$0\" \"$@\"")]).arg(program());
        Self::start_by(command)
    }

    fn start_by(mut command: Command) -> Self {
        let dir = tempfile::Builder::new().prefix("supervisor-").tempdir().unwrap();
        // As an agent keeps it: nobody but root may look inside.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        make_layer(&dir.path().join("layer"));
        make_disk(&dir.path().join("disk"), 256);
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        let number = number();
        let uid_base = 1_000_000 + number % 20_000 * 65536;
        let output = command
            .args(["sandbox", "--uid-base", &uid_base.to_string(), "--dir"])
            .arg(&run)
            .arg("--scratch")
            .arg(dir.path().join("disk"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(run.join("supervisor.json")).unwrap()).unwrap();
        let mut sandbox = Self {
            dir,
            pid: i32::try_from(record["pid"].as_i64().unwrap()).unwrap(),
            uid_base,
            cgroup_parent: format!("/coracle-test-{}-{number}", std::process::id()),
            state: SandboxState {
                task: None,
                sequence: 0,
                phase: SandboxPhase::Idle,
                containers: vec![],
                stop: None,
            },
            logs: HashMap::new(),
            acknowledges: true,
            frozen: None,
            stream: None,
            input: vec![],
        };
        sandbox.connect();
        sandbox
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub fn connect(&mut self) {
        let stream = UnixStream::connect(self.run_dir().join("supervisor.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        self.stream = Some(stream);
        self.input.clear();
    }

    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    pub fn say(&mut self, message: &ToSupervisor) {
        let document = serde_json::to_vec(message).unwrap();
        let mut frame = u32::try_from(document.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(document);
        self.stream.as_mut().unwrap().write_all(&frame).unwrap();
    }

    /// Takes in what comes within the read timeout. `false` at the connection's end.
    pub fn listen(&mut self) -> bool {
        let mut chunk = [0u8; 65536];
        match self.stream.as_mut().unwrap().read(&mut chunk) {
            Ok(0) => return false,
            Ok(length) => self.input.extend_from_slice(&chunk[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
            Err(error) => panic!("{error}"),
        }
        while self.input.len() >= 4 {
            let length = u32::from_be_bytes(self.input[..4].try_into().unwrap()) as usize;
            if self.input.len() < 4 + length {
                break;
            }
            let message: FromSupervisor = serde_json::from_slice(&self.input[4..4 + length]).unwrap();
            self.input.drain(..4 + length);
            match message {
                FromSupervisor::State { state } => {
                    assert!(state.sequence >= self.state.sequence);
                    self.state = state;
                }
                FromSupervisor::Frozen { failure } => self.frozen = Some(failure),
                FromSupervisor::Logs { batch } => {
                    let end = batch.first + batch.records.len() as u64;
                    let known = self.logs.entry(batch.container.clone()).or_default();
                    // Repeated records are allowed, a gap is not.
                    assert!(batch.first <= known.len() as u64, "a gap before {}", batch.first);
                    known.truncate(usize::try_from(batch.first).unwrap());
                    known.extend(batch.records);
                    if self.acknowledges {
                        self.say(&ToSupervisor::AckLogs { container: batch.container, upto: end });
                    }
                }
            }
        }
        true
    }

    /// Listens until the condition holds.
    pub fn wait(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}: {:?}\n{:?}\n{}",
                self.state,
                self.logs
                    .iter()
                    .map(|(name, all)| (name, all.iter().rev().take(9).collect()))
                    .collect::<Vec<(_, Vec<_>)>>(),
                self.log()
            );
            assert!(self.listen(), "the supervisor hung up: {what}\n{}", self.log());
        }
    }

    /// The supervisor's own log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.run_dir().join("supervisor.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    pub fn container(&self, name: &str) -> &ContainerState {
        self.state.containers.iter().find(|container| container.name == name).expect(name)
    }

    pub fn spec(&self, containers: Vec<SandboxContainer>) -> SandboxSpec {
        SandboxSpec {
            task: TaskId::from_random(0x1234),
            hostname: "ip-10-0-0-5.ec2.internal".into(),
            address: "10.0.0.5".parse().unwrap(),
            resolver: "10.0.0.2".parse().unwrap(),
            search_domain: Some("ec2.internal".into()),
            cgroup_parent: Some(self.cgroup_parent.clone()),
            scratch: self.dir.path().join("disk"),
            volumes: vec![],
            share_pid_namespace: false,
            guest: None,
            containers,
        }
    }

    /// A container that runs a shell script.
    pub fn shell(&self, name: &str, script: &str) -> SandboxContainer {
        SandboxContainer {
            spec: ContainerSpec {
                name: name.into(),
                image: "busybox".into(),
                essential: true,
                entry_point: None,
                command: Some(vec!["/bin/sh".into(), "-c".into(), script.into()]),
                working_directory: None,
                user: None,
                environment: vec![],
                cpu_shares: 128,
                memory_mib: None,
                memory_reservation_mib: None,
                depends_on: vec![],
                health_check: None,
                start_timeout_secs: None,
                stop_timeout_secs: 60,
                restart_policy: None,
                ulimits: vec![],
                linux: LinuxSpec::default(),
                readonly_root_filesystem: false,
                privileged: false,
                mounts: vec![],
                volumes_from: vec![],
                sysctls: vec![],
                ports: vec![],
                stdin_open: false,
                tty: false,
                extra_hosts: vec![],
                docker_labels: vec![],
                log: Some(LogSpec {
                    region: "us-east-1".into(),
                    group: "g".into(),
                    stream: "s".into(),
                    create_group: false,
                    mode: LogMode::Blocking,
                    multiline_pattern: None,
                }),
            },
            image: ImageConfig::default(),
            layers: vec![Layer::Directory { path: self.layer() }],
            extra_environment: vec![],
        }
    }

    pub fn run(&mut self, spec: SandboxSpec) {
        self.say(&ToSupervisor::Run { spec: Box::new(spec) });
    }

    /// Runs containers to the task's end, with all logs.
    pub fn run_to_end(&mut self, containers: Vec<SandboxContainer>) {
        let spec = self.spec(containers);
        self.run(spec);
        self.wait_for_end();
    }

    pub fn wait_for_end(&mut self) {
        self.wait("the end", |sandbox| {
            sandbox.state.phase == SandboxPhase::Ended
                && sandbox.state.containers.iter().all(|container| {
                    sandbox.logs.get(&container.name).map_or(0, Vec::len) as u64 >= container.log_end
                })
        });
    }

    /// Runs a script in a container of its own; its output and exit code.
    pub fn shell_output(script: &str) -> (String, i32) {
        Self::output_of(script, |_| {})
    }

    /// The same, with a change to the container before.
    pub fn output_of(script: &str, change: impl FnOnce(&mut SandboxContainer)) -> (String, i32) {
        let mut sandbox = Self::start();
        let mut container = sandbox.shell("app", script);
        change(&mut container);
        sandbox.run_to_end(vec![container]);
        let state = sandbox.container("app").clone();
        let text = sandbox.text("app");
        (text, state.exit_code.unwrap_or_else(|| panic!("{state:?} {}", sandbox.log())))
    }

    pub fn text(&self, container: &str) -> String {
        let records = self.logs.get(container).map_or(&[][..], Vec::as_slice);
        records.iter().map(|record| record.line.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Lets the sandbox go and waits for its process to end.
    pub fn release(&mut self) {
        self.say(&ToSupervisor::Release);
        self.wait_for_death();
    }

    pub fn wait_for_death(&self) {
        let deadline = Instant::now() + DEADLINE;
        while is_alive(self.pid) {
            assert!(Instant::now() < deadline, "the supervisor lives: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether a process runs (a zombie does not).
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

impl Drop for TestSandbox {
    fn drop(&mut self) {
        if is_alive(self.pid) {
            let _ = Command::new("kill").args(["-9", &self.pid.to_string()]).status();
            let deadline = Instant::now() + Duration::from_secs(10);
            while is_alive(self.pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for dir in cgroup_dirs(&self.cgroup_parent) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while dir.exists() && Instant::now() < deadline {
                for child in fs::read_dir(&dir).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(child.path());
                }
                if fs::remove_dir(&dir).is_err() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

/// The directories of a control group that exist.
pub fn cgroup_dirs(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies
        .chain([root.to_owned()])
        .map(|hierarchy| hierarchy.join(path.trim_start_matches('/')))
        .filter(|dir| dir.exists())
        .collect()
}

fn make_layer(layer: &Path) {
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev", "home/app", "data"] {
        fs::create_dir_all(layer.join(dir)).unwrap();
    }
    fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/usr/bin/busybox", layer.join("bin/busybox")).unwrap();
    let applets = Command::new("/usr/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(
        layer.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n",
    )
    .unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
    let foreign = layer.join("bin/foreign");
    fs::write(&foreign, b"\x7fELF\x02\x01\x01 not for this machine").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(layer.join("data/seed"), "from the image\n").unwrap();
    for (path, id) in [("home/app", 1000), ("data", 1000), ("data/seed", 1000)] {
        std::os::unix::fs::chown(layer.join(path), Some(id), Some(id)).unwrap();
    }
}

fn make_disk(path: &Path, mib: u64) {
    fs::File::create(path).unwrap().set_len(mib << 20).unwrap();
    let output =
        Command::new("mkfs.ext4").args(["-q", "-F", "-E", "root_owner=0:0"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
