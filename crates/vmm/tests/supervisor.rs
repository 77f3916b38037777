//! The supervisor as the first process of machines on real KVM, booted or restored from a template.
//! Here the test is the agent.

mod common;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{Console, Monitor, PATIENCE, guest, in_network_namespace, tap};
use model::microvm::{
    Attached, Devices, Disk, Ended, MachineConfig, NetworkInterface, Request, RestoreConfig, SCRATCH_DEVICE,
    SUPERVISOR_PORT, Vsock, VsockPort,
};
use model::sandbox::{
    FromSupervisor, GuestSetup, ImageConfig, Layer, SandboxContainer, SandboxPhase, SandboxSpec,
    SandboxState, ToSupervisor,
};
use model::spec::{ContainerSpec, DeviceSpec, HealthCheck, LinuxSpec, LogMode, LogSpec};
use model::{HealthStatus, TaskId, Timestamp};

const ROUTER_MAC: &str = "02:c0:ff:ff:ff:01";
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1";

/// A machine, and the agent's end of the protocol.
struct Machine {
    monitor: Monitor,
    console: Console,
    directory: tempfile::TempDir,
    stream: Option<UnixStream>,
    input: Vec<u8>,
    state: Option<SandboxState>,
    lines: Vec<String>,
}

/// What stands behind a machine's devices.
struct Backing {
    layers: Vec<File>,
    scratch: Vec<File>,
    tap: Option<OwnedFd>,
}

impl Backing {
    fn none() -> Self {
        Self { layers: vec![], scratch: vec![], tap: None }
    }

    /// A task's: two layers, an empty disk, a tap whose host's end is the router.
    fn of_a_task() -> Self {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        scratch.as_file().set_len(256 << 20).unwrap();
        run(&format!("mkfs.ext4 -q -F -E root_owner=0:0 {}", scratch.path().display()));
        let tap = tap();
        run(&format!("ip link set tap0 address {ROUTER_MAC}"));
        let layers = ["layers/base.erofs", "layers/second.erofs"].map(guest).into();
        Self { layers, scratch: vec![scratch.reopen().unwrap()], tap: Some(tap) }
    }

    fn places(&self) -> Vec<Layer> {
        let mut end = 0;
        let mut place = |file: &File| {
            let length = file.metadata().unwrap().len();
            let offset = end;
            end = (end + length).next_multiple_of(4096);
            Layer::Extent { offset, length }
        };
        self.layers.iter().map(&mut place).collect()
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The devices; what stands behind them is added to the files.
fn devices<'a>(backing: &'a Backing, listener: &'a UnixListener, files: &mut Vec<&'a dyn AsFd>) -> Devices {
    let mut attach = |file: &'a dyn AsFd| {
        files.push(file);
        Attached(u8::try_from(files.len() - 1).unwrap())
    };
    let disk = |parts, read_only| Disk { parts, read_only, rate_limit: None };
    let layers = disk(backing.layers.iter().map(|file| attach(file)).collect(), true);
    let scratch = disk(backing.scratch.iter().map(|file| attach(file)).collect(), false);
    let network = NetworkInterface {
        tap: backing.tap.as_ref().map(|tap| attach(tap)),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        transmit_limit: None,
        receive_limit: None,
    };
    let port = VsockPort { listener: attach(listener), port: SUPERVISOR_PORT };
    Devices { disks: vec![layers, scratch], network: Some(network), vsock: Some(Vsock { ports: vec![port] }) }
}

impl Machine {
    fn new(start: impl FnOnce(&mut Monitor, &Console, &UnixListener)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let (mut monitor, console) = (Monitor::start(), Console::new());
        start(&mut monitor, &console, &listener);
        let (input, lines) = (vec![], vec![]);
        let mut machine = Self { monitor, console, directory, stream: None, input, state: None, lines };
        machine.connect();
        machine
    }

    fn boot(backing: &Backing) -> Self {
        Self::new(|monitor, console, listener| {
            let (kernel, initramfs) = (guest("vmlinux"), guest("supervisor.cpio"));
            let mut files: Vec<&dyn AsFd> = vec![&kernel, &initramfs, console];
            let config = MachineConfig {
                vcpus: 1,
                memory_mib: 256,
                kernel: Attached(0),
                initramfs: Some(Attached(1)),
                command_line: COMMAND_LINE.into(),
                console: Some(Attached(2)),
                devices: devices(backing, listener, &mut files),
            };
            monitor.must(&Request::Boot(Box::new(config)), &files);
        })
    }

    fn restore(template: &(File, File), backing: &Backing) -> Self {
        Self::new(|monitor, console, listener| {
            let mut files: Vec<&dyn AsFd> = vec![&template.0, &template.1, console];
            let config = RestoreConfig {
                state: Attached(0),
                memory: Attached(1),
                console: Some(Attached(2)),
                devices: devices(backing, listener, &mut files),
                new_identity: true,
                userfaultfd: None,
            };
            monitor.must(&Request::Restore(Box::new(config)), &files);
        })
    }

    /// Connects (again) until the supervisor says its state.
    fn connect(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stream = UnixStream::connect(self.directory.path().join("socket")).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            (self.stream, self.state) = (Some(stream), None);
            self.input.clear();
            while self.listen() && self.state.is_none() && Instant::now() < deadline {}
            if self.state.is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "no supervisor: {}", self.console.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn say(&mut self, message: &ToSupervisor) {
        let document = serde_json::to_vec(message).unwrap();
        let mut frame = u32::try_from(document.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(document);
        self.stream.as_mut().unwrap().write_all(&frame).unwrap();
    }

    /// Takes in what has come. `false` at the connection's end.
    fn listen(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.as_mut().unwrap().read(&mut chunk) {
            Ok(0) => return false,
            Ok(length) => self.input.extend_from_slice(&chunk[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        while self.input.len() >= 4 {
            let end = 4 + u32::from_be_bytes(self.input[..4].try_into().unwrap()) as usize;
            if self.input.len() < end {
                break;
            }
            let message = serde_json::from_slice(&self.input[4..end]).unwrap();
            self.input.drain(..end);
            match message {
                FromSupervisor::Frozen { .. } => {}
                FromSupervisor::State { state } => self.state = Some(state),
                FromSupervisor::Logs { batch } => {
                    self.lines.truncate(usize::try_from(batch.first).unwrap());
                    let upto = batch.first + batch.records.len() as u64;
                    self.lines.extend(batch.records.into_iter().map(|record| record.line));
                    self.say(&ToSupervisor::AckLogs { container: batch.container, upto });
                }
            }
        }
        true
    }

    fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let is_late = Instant::now() > deadline;
            let tell = |machine: &Self| {
                format!("{what}: {:?}\n{:?}\n{}", machine.state, machine.lines, machine.console.text())
            };
            assert!(!is_late, "waited in vain for {}", tell(self));
            assert!(self.listen(), "hung up: {}", tell(self));
        }
    }

    fn run(&mut self, container: SandboxContainer, address: [u8; 4]) {
        let spec = SandboxSpec {
            task: TaskId::from_random(0x1234),
            hostname: format!("ip-{}.internal", address.map(|part| part.to_string()).join("-")),
            address: address.into(),
            resolver: "10.0.0.2".parse().unwrap(),
            search_domain: None,
            cgroup_parent: None,
            scratch: SCRATCH_DEVICE.into(),
            volumes: vec![],
            share_pid_namespace: false,
            containers: vec![container],
            guest: Some(GuestSetup {
                mac: [2, 0xc0, address[0], address[1], address[2], address[3]],
                gateway: "10.0.0.1".parse().unwrap(),
                gateway_mac: [2, 0xc0, 0xff, 0xff, 0xff, 1],
                mtu: 1400,
                memory_mib: 128,
                pids_max: 100,
                // The first second of 2030.
                now: Timestamp(1_893_456_000_000),
                entropy: "5a".repeat(32),
            }),
        };
        self.say(&ToSupervisor::Run { spec: Box::new(spec) });
    }

    fn wait_for_end_of_task(&mut self) -> &SandboxState {
        self.wait("the task's end", |machine| {
            machine.state.as_ref().is_some_and(|state| {
                state.phase == SandboxPhase::Ended
                    && state.containers.iter().all(|one| machine.lines.len() as u64 >= one.log_end)
            })
        });
        self.state.as_ref().unwrap()
    }

    /// Lets the machine end as the agent does.
    fn release(mut self) {
        self.say(&ToSupervisor::Release);
        assert_eq!(self.monitor.wait_for_end(), Ended::PoweredOff, "{}", self.console.text());
    }
}

fn shell(backing: &Backing, script: &str) -> SandboxContainer {
    let spec = ContainerSpec {
        name: "app".into(),
        image: "busybox".into(),
        essential: true,
        entry_point: None,
        command: Some(["/bin/sh", "-c", script].map(str::to_owned).into()),
        working_directory: None,
        user: None,
        environment: vec![],
        cpu_shares: 128,
        memory_mib: None,
        memory_reservation_mib: None,
        depends_on: vec![],
        health_check: None,
        start_timeout_secs: None,
        stop_timeout_secs: 30,
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
            region: "r".into(),
            group: "g".into(),
            stream: "s".into(),
            create_group: false,
            mode: LogMode::Blocking,
            multiline_pattern: None,
        }),
    };
    SandboxContainer {
        spec,
        image: ImageConfig::default(),
        layers: backing.places(),
        extra_environment: vec![],
    }
}

/// What a container says of the place it is in.
const LOOK_AROUND: &str = "date -u +%Y; hostname; cat /etc/second; ls /etc/hidden 2>&1; echo new > /file; cat /file; \
     ip -4 address show eth0 | grep inet | tr -s ' '; cat /sys/class/net/eth0/address; ping -c 1 -W 5 10.0.0.1 | \
     grep received; grep -e Seccomp: -e NoNewPrivs /proc/self/status; id -u; cat /proc/sys/kernel/random/uuid \
     /proc/sys/kernel/random/boot_id";

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_task_runs_in_a_machine_that_was_booted() {
    in_network_namespace(|| {
        let backing = Backing::of_a_task();
        let mut machine = Machine::boot(&backing);
        assert_eq!(machine.state.as_ref().unwrap().phase, SandboxPhase::Idle);
        // The agent may come again at any time.
        machine.connect();
        let mut app =
            shell(&backing, &format!("{LOOK_AROUND}; while [ ! -e /tmp/checked ]; do sleep 0.1; done"));
        app.spec.health_check = Some(HealthCheck {
            command: ["/bin/sh", "-c", "touch /tmp/checked"].map(str::to_owned).into(),
            interval_secs: 1,
            timeout_secs: 30,
            retries: 1,
            start_period_secs: 0,
        });
        machine.run(app, [10, 0, 0, 7]);
        let state = machine.wait_for_end_of_task();
        let app = &state.containers[0];
        assert_eq!((app.exit_code, app.health, app.pid), (Some(0), HealthStatus::Healthy, None));
        let lines = machine.lines.join("\n");
        for expected in [
            "2030\nip-10-0-0-7.internal\nabove\nls: /etc/hidden: No such file or directory\nnew\n",
            " inet 10.0.0.7/32 scope global eth0\n02:c0:0a:00:00:07\n1 packets transmitted, 1 packets received",
            "NoNewPrivs:\t1\nSeccomp:\t2\n0\n",
        ] {
            assert!(lines.contains(expected), "{expected:?} in {lines}");
        }
        machine.release();
    });
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn tasks_run_in_copies_of_a_template() {
    let template = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut machine = Machine::boot(&Backing::none());
    machine.monitor.must(&Request::Pause, &[]);
    machine.monitor.write_down(&template.0, &template.1);
    machine.monitor.must(&Request::Stop, &[]);
    drop(machine);

    let mut said = Vec::new();
    for number in [7, 8] {
        let template = (template.0.try_clone().unwrap(), template.1.try_clone().unwrap());
        let (sender, receiver) = std::sync::mpsc::channel();
        in_network_namespace(move || {
            let backing = Backing::of_a_task();
            let mut machine = Machine::restore(&template, &backing);
            let begun = Instant::now();
            machine.run(shell(&backing, LOOK_AROUND), [10, 0, 0, number]);
            machine.wait_for_end_of_task();
            println!("from Run to the end: {:?}", begun.elapsed());
            let lines = machine.lines.join("\n");
            assert!(lines.contains(&format!(" inet 10.0.0.{number}/32 ")), "{lines}");
            assert!(lines.contains("2030\n") && lines.contains(", 1 packets received"), "{lines}");
            sender.send(machine.lines.clone()).unwrap();
            machine.release();
        });
        said.push(receiver.recv().unwrap());
    }
    // Randomness and identity are each copy's own: the last two lines.
    for (one, other) in said[0].iter().rev().zip(said[1].iter().rev()).take(2) {
        assert_eq!(one.len(), 36);
        assert_ne!(one, other);
    }
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_privileged_container_has_the_kernel_and_can_crash_only_that() {
    in_network_namespace(|| {
        let backing = Backing::of_a_task();
        let mut machine = Machine::boot(&backing);
        let mut app = shell(
            &backing,
            "grep -e CapEff -e Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted; \
             ls /dev/vdb /dev/nothing; cat /proc/sys/vm/swappiness; mkdir /sys/fs/cgroup/own && echo made; \
             echo 1 > /proc/sys/kernel/sysrq; sleep 1; echo c > /proc/sysrq-trigger",
        );
        app.spec.privileged = true;
        app.spec.sysctls = vec![("vm.swappiness".into(), "7".into())];
        app.spec.linux.devices = vec![DeviceSpec {
            host_path: "/dev/zero".into(),
            container_path: "/dev/nothing".into(),
            read: true,
            write: false,
            mknod: false,
        }];
        machine.run(app, [10, 0, 0, 7]);
        machine.wait("the first lines", |machine| machine.lines.len() >= 7);
        let lines = machine.lines.join("\n");
        assert!(lines.contains("ffffffff\nSeccomp:\t0\nmounted\n"), "{lines}");
        assert!(lines.contains("/dev/nothing\n/dev/vdb\n7\nmade"), "{lines}");
        assert_eq!(machine.monitor.wait_for_end(), Ended::Reset, "{}", machine.console.text());
    });
}
