//! Network and vsock of machines on real KVM: Linux's own drivers at the other end.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{Console, Monitor, PATIENCE, guest, in_network_namespace, own_guest, tap};
use model::microvm::{Attached, Devices, Ended, NetworkInterface, Request, RestoreConfig, Vsock, VsockPort};

const PORT: u32 = 1024;
/// Bytes each way.
const MUCH: usize = 400_000;

fn pattern(seed: u8) -> Vec<u8> {
    (0..MUCH).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ (at >> 16) as u8 ^ seed).collect()
}

// ---- in the guest ----

/// Not a test by itself: echoes each connection to the vsock port, in a thread each.
#[test]
fn guest_vsock_echo() {
    if !own_guest::is_here() {
        return;
    }
    let listener = vsock_listener();
    println!("guest: listening");
    loop {
        let stream = UnixStream::from(rustix::net::accept(&listener).unwrap());
        thread::spawn(move || {
            if let Err(error) = std::io::copy(&mut &stream, &mut &stream) {
                println!("guest: {:?}", error.kind());
            }
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
}

/// `std` and `rustix` know no such addresses.
#[allow(unsafe_code)]
fn vsock_listener() -> OwnedFd {
    // SAFETY: plain calls with valid arguments; the descriptor is new.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as _;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = PORT;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as _), 0);
        assert_eq!(libc::listen(fd, 64), 0);
        socket
    }
}

/// Not a test by itself: sends much to the host, which sends it back.
#[test]
fn guest_network_client() {
    if !own_guest::is_here() {
        return;
    }
    let stream = TcpStream::connect("10.0.0.1:9000").unwrap();
    let mut reading = stream.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        reading.read_to_end(&mut all).unwrap();
        all
    });
    (&stream).write_all(&pattern(1)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(reader.join().unwrap() == pattern(1));
    println!("guest: all came back");
}

// ---- on the host ----

/// Sends much and gets it back.
fn exchange(stream: &UnixStream, seed: u8) {
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        writing.write_all(&pattern(seed)).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut all = Vec::new();
    (&mut &*stream).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), MUCH);
    assert!(all == pattern(seed));
    writer.join().unwrap();
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn vsock_connections() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("served")).unwrap();
    let unserved = UnixListener::bind(directory.path().join("unserved")).unwrap();
    let connect = |name: &str| {
        let stream = UnixStream::connect(directory.path().join(name)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut config = own_guest::running("", "guest_vsock_echo");
    let ports = vec![
        VsockPort { listener: Attached(3), port: PORT },
        VsockPort { listener: Attached(4), port: PORT + 1 },
    ];
    config.devices.vsock = Some(Vsock { ports });
    let console = Console::new();
    let files: [&dyn AsFd; 5] = [&guest("vmlinuz"), &own_guest::initramfs(), &console, &listener, &unserved];
    let mut monitor = Monitor::start();
    monitor.must(&Request::Boot(Box::new(config)), &files);
    console.wait_for("guest: listening");

    exchange(&connect("served"), 0);
    // Nobody listens there.
    let mut bytes = [0; 1];
    assert!(!matches!(connect("unserved").read(&mut bytes), Ok(1..)));
    // Many at once, of which one does not read.
    let stalled = connect("served");
    stalled.set_nonblocking(true).unwrap();
    while (&stalled).write(&[0; 65536]).is_ok_and(|count| count > 0) {}
    let streams: Vec<_> = (0..10).map(|_| connect("served")).collect();
    thread::scope(|scope| {
        for (seed, stream) in (0..).zip(&streams) {
            scope.spawn(move || exchange(stream, seed));
        }
    });
    drop(stalled);
    // Pausing loses nothing.
    let stream = connect("served");
    let exchanging = thread::spawn(move || exchange(&stream, 7));
    for _ in 0..5 {
        monitor.must(&Request::Pause, &[]);
        monitor.must(&Request::Resume, &[]);
    }
    exchanging.join().unwrap();
    // More than there may be at once, one after the other.
    for _ in 0..100 {
        let mut stream = connect("served");
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut bytes).unwrap();
    }
    monitor.must(&Request::Stop, &[]);
    assert_eq!(monitor.wait_for_end(), Ended::Stopped);
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn network() {
    in_network_namespace(|| {
        let tap = tap();
        let server = TcpListener::bind("10.0.0.1:9000").unwrap();
        server.set_nonblocking(true).unwrap();
        let mut config = own_guest::running(
            "ip link set eth0 up; ip address add 10.0.0.2/24 dev eth0; ip link show eth0; ping -c 1 10.0.0.1;",
            "guest_network_client",
        );
        config.devices.network = Some(NetworkInterface {
            tap: Some(Attached(3)),
            mac: [2, 0, 0, 0, 0, 2],
            mtu: None,
            transmit_limit: None,
            receive_limit: None,
        });
        let console = Console::new();
        let files: [&dyn AsFd; 4] = [&guest("vmlinuz"), &own_guest::initramfs(), &console, &tap];
        let mut monitor = Monitor::start();
        monitor.must(&Request::Boot(Box::new(config)), &files);
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match server.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}:\n{}", console.text()),
            }
            thread::sleep(Duration::from_millis(10));
        };
        stream.set_nonblocking(false).unwrap();
        std::io::copy(&mut &stream, &mut &stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let ended = monitor.wait_for_end();
        let text = console.text();
        assert_eq!(ended, Ended::PoweredOff, "{text}");
        assert!(text.contains("guest: all came back"), "{text}");
        assert!(text.contains("02:00:00:00:00:02"), "{text}");
        assert!(text.contains("1 packets received"), "{text}");
    });
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_restored_machine_is_connected_anew() {
    let directory = tempfile::tempdir().unwrap();
    let listen = |name: &str| UnixListener::bind(directory.path().join(name)).unwrap();
    let connect = |name: &str| {
        let stream = UnixStream::connect(directory.path().join(name)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let devices = |tap, listener| Devices {
        network: Some(NetworkInterface {
            tap,
            mac: [2, 0, 0, 0, 0, 2],
            mtu: None,
            transmit_limit: None,
            receive_limit: None,
        }),
        vsock: Some(Vsock { ports: vec![VsockPort { listener, port: PORT }] }),
        ..Devices::default()
    };
    // A template: there is no tap yet.
    let mut config = own_guest::running(
        "ip link set eth0 up; ip address add 10.0.0.2/24 dev eth0; \
         (while true; do echo carrier $(cat /sys/class/net/eth0/carrier); sleep 0.2; done) & ",
        "guest_vsock_echo",
    );
    config.devices = devices(None, Attached(3));
    let (console, listener) = (Console::new(), listen("template"));
    let files: [&dyn AsFd; 4] = [&guest("vmlinuz"), &own_guest::initramfs(), &console, &listener];
    let mut template = Monitor::start();
    template.must(&Request::Boot(Box::new(config)), &files);
    console.wait_for("guest: listening");
    console.wait_for("carrier 0");
    // The connection is there when the guest has answered over it.
    let mut bytes = [0; 1];
    let mut old = connect("template");
    old.write_all(b"x").unwrap();
    old.read_exact(&mut bytes).unwrap();
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    template.must(&Request::Pause, &[]);
    template.write_down(&state, &memory);
    // For the machine itself nothing has changed.
    template.must(&Request::Resume, &[]);
    old.write_all(b"y").unwrap();
    old.read_exact(&mut bytes).unwrap();
    assert!(!console.text().contains("ConnectionReset"));

    for name in ["first", "second"] {
        let listener = listen(name);
        // Somebody who is there before the machine is.
        let waiting = connect(name);
        let (state, memory) = (state.try_clone().unwrap(), memory.try_clone().unwrap());
        in_network_namespace(move || {
            let (tap, console) = (tap(), Console::new());
            let config = RestoreConfig {
                state: Attached(0),
                memory: Attached(1),
                devices: devices(Some(Attached(3)), Attached(4)),
                console: Some(Attached(2)),
                new_identity: true,
                userfaultfd: None,
            };
            let files: [&dyn AsFd; 5] = [&state, &memory, &console, &tap, &listener];
            let mut monitor = Monitor::start();
            monitor.must(&Request::Restore(Box::new(config)), &files);
            exchange(&waiting, 3);
            // The guest's end of the old connection.
            console.wait_for("ConnectionReset");
            console.wait_for("carrier 1");
            // Its kernel answers over the network: nobody listens there.
            let error = TcpStream::connect("10.0.0.2:9").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
            monitor.must(&Request::Stop, &[]);
            assert_eq!(monitor.wait_for_end(), Ended::Stopped);
        });
    }
}
