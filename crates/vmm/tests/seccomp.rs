//! Filtered threads, and what happens to them when they are made to do something else: the process is
//! ended by SIGSYS. Each attempt is a process of its own, this test program started again.
//! (`src/seccomp_tests.rs` does the same with the monitor's own threads.)

mod common;

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use common::{Console, Monitor, guest, probe};
use model::microvm::{Attached, Disk, NetworkInterface, Request, Vsock, VsockPort};
use vmm::seccomp::{ThreadKind, filter};

const KIND: &str = "SECCOMP_TEST_KIND";
const ATTEMPT: &str = "SECCOMP_TEST_ATTEMPT";
const SIGSYS: i32 = 31;
const KINDS: [ThreadKind; 4] = [ThreadKind::Main, ThreadKind::Device, ThreadKind::Vcpu, ThreadKind::Pager];

/// What code that has taken over a thread would like to do.
fn attempt(name: &str) {
    match name {
        "nothing" => {}
        "open" => drop(std::fs::File::open("/etc/passwd")),
        "exec" => drop(Command::new("/bin/true").status()),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "connect" => drop(std::os::unix::net::UnixStream::connect("/run/docker.sock")),
        "kill" => drop(nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), None)),
        "ptrace" => drop(nix::sys::prctl::set_dumpable(true)),
        "mount" => {
            let none: Option<&str> = None;
            let _ = nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_PRIVATE, none);
        }
        "unshare" => drop(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)),
        "setuid" => drop(nix::unistd::setuid(nix::unistd::Uid::from_raw(0))),
        "chroot" => drop(nix::unistd::chroot("/")),
        "executable memory" => executable_memory(),
        "thread" => drop(std::thread::spawn(|| ()).join()),
        other => panic!("unknown attempt {other}"),
    }
}

#[allow(unsafe_code)]
fn executable_memory() {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    // SAFETY: a new mapping at a place the kernel chooses touches no memory of ours.
    let _ = unsafe {
        mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::EXEC | ProtFlags::WRITE, MapFlags::PRIVATE)
    };
}

/// Not a test by itself: the process that [`end_of`] starts.
#[test]
fn child() {
    let (Ok(kind), Ok(name)) = (std::env::var(KIND), std::env::var(ATTEMPT)) else { return };
    let kind = match kind.as_str() {
        "Main" => ThreadKind::Main,
        "Device" => ThreadKind::Device,
        "Pager" => ThreadKind::Pager,
        _ => ThreadKind::Vcpu,
    };
    rustix::thread::set_no_new_privs(true).unwrap();
    filter(kind).unwrap();
    attempt(&name);
    // Past the test harness, which is not filtered code.
    std::process::exit(0);
}

fn end_of(kind: ThreadKind, attempt: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(KIND, format!("{kind:?}"))
        .env(ATTEMPT, attempt)
        .output()
        .unwrap()
        .status
}

#[test]
fn what_is_forbidden_ends_the_process() {
    for kind in KINDS {
        for attempt in [
            "open",
            "exec",
            "socket",
            "connect",
            "kill",
            "ptrace",
            "mount",
            "unshare",
            "setuid",
            "chroot",
            "executable memory",
        ] {
            let status = end_of(kind, attempt);
            assert_eq!(status.signal(), Some(SIGSYS), "{kind:?}: {attempt}: {status}");
        }
    }
    for kind in KINDS.into_iter().filter(|kind| *kind != ThreadKind::Main) {
        assert_eq!(end_of(kind, "thread").signal(), Some(SIGSYS), "{kind:?} starts no threads");
    }
}

#[test]
fn what_is_allowed_is_possible() {
    for kind in KINDS {
        assert_eq!(end_of(kind, "nothing").code(), Some(0), "{kind:?}");
    }
    assert_eq!(end_of(ThreadKind::Main, "thread").code(), Some(0));
}

/// Of a thread: its name, whether it is filtered (`Seccomp`: 2), by how many filters, and whether it
/// can gain privileges (`proc_pid_status(5)`).
fn thread_states(pid: u32) -> Vec<[String; 4]> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut states: Vec<_> = tasks
        .map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            ["Name", "Seccomp", "Seccomp_filters", "NoNewPrivs"].map(|key| {
                let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
                value.unwrap_or_else(|| panic!("no {key}: {status}")).to_owned()
            })
        })
        .collect();
    states.sort();
    states
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn every_thread_of_a_running_monitor_is_filtered() {
    let mut monitor = Monitor::start();
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("1024")).unwrap();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let mut config = probe("echo running; while true; do sleep 1; done");
    config.vcpus = 2;
    config.devices.disks = vec![
        Disk { parts: vec![Attached(3)], read_only: true, rate_limit: None },
        Disk { parts: vec![], read_only: false, rate_limit: None },
    ];
    let (mac, limit) = ([2, 0, 0, 0, 0, 1], None);
    config.devices.network =
        Some(NetworkInterface { tap: None, mac, mtu: None, transmit_limit: limit, receive_limit: limit });
    config.devices.vsock = Some(Vsock { ports: vec![VsockPort { listener: Attached(4), port: 1024 }] });
    let console = Console::new();
    let files: [&dyn AsFd; 5] = [&guest("vmlinuz"), &guest("probe.cpio"), &console, &disk, &listener];
    let thread = |name: &str, filters: &str| [name, "2", filters, "1"].map(String::from);
    let mut expected = vec![thread("coracle-vmm", "1")];
    // It answers, so it has begun.
    monitor.must_refuse(&Request::Describe, &[]);
    assert_eq!(thread_states(monitor.pid()), expected);
    monitor.must(&Request::Boot(Box::new(config)), &files);
    console.wait_for("running");
    // Each of their own filter and the main thread's: a disk each, all other devices, two processors.
    expected.extend(["device", "device", "device", "vcpu", "vcpu"].map(|name| thread(name, "2")));
    assert_eq!(thread_states(monitor.pid()), expected, "{}", monitor.errors());
}
