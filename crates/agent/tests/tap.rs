//! Taps, the links of microVMs, on the real kernel. Needs root and `/dev/net/tun`.
//!
//! The "guest" is a network namespace whose interface is a tap, too; a thread carries frames between
//! the two, as a machine's monitor does.

mod support;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use agent::instance::Instance;
use agent::net::{InterfaceSpec, NetConfig, Network, TaskLink, configure_inside, netns, tap};
use model::network::{Eni, Mac};
use model::{EniId, Region, SubnetId, VpcId};
use rustix::event::{PollFd, PollFlags, poll};
use support::on_private_host;

const DEADLINE: Duration = Duration::from_secs(5);

struct Host {
    runtime: tokio::runtime::Runtime,
    state_dir: tempfile::TempDir,
    network: Option<Network>,
    vpc: VpcId,
}

/// A guest, and what the agent knows of it.
struct Guest {
    netns: File,
    link: TaskLink,
    eni: Eni,
    carrier: Option<Carrier>,
}

/// The thread that carries frames; it ends, and closes the tap, when this is dropped.
struct Carrier {
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Option<io::PipeWriter>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn carry(one: OwnedFd, other: OwnedFd) -> Carrier {
    let (stopped, stop) = io::pipe().unwrap();
    let thread = std::thread::spawn(move || {
        let (one, other) = (File::from(one), File::from(other));
        let mut frame = vec![0; 70_000];
        loop {
            let mut ready = [
                PollFd::new(&one, PollFlags::IN),
                PollFd::new(&other, PollFlags::IN),
                PollFd::new(&stopped, PollFlags::IN),
            ];
            poll(&mut ready, None).unwrap();
            let [from_one, from_other, stop] = ready.map(|fd| !fd.revents().is_empty());
            if stop {
                return;
            }
            for (is_ready, mut from, mut to) in [(from_one, &one, &other), (from_other, &other, &one)] {
                while is_ready && let Ok(length) = from.read(&mut frame) {
                    // A full queue drops frames, as networks do.
                    let _ = to.write(&frame[..length]);
                }
            }
        }
    });
    Carrier { thread: Some(thread), stop: Some(stop) }
}

impl Host {
    fn new() -> Self {
        sh("ip link set lo up");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state_dir = tempfile::tempdir().unwrap();
        let vpc = VpcId::parse("vpc-0123456789abcdef0").unwrap();
        let network = open(&runtime, &state_dir);
        runtime.block_on(network.ensure_vpc(&vpc, "172.31.0.0/16".parse().unwrap())).unwrap();
        Self { runtime, state_dir, network: Some(network), vpc }
    }

    fn network(&self) -> &Network {
        self.network.as_ref().unwrap()
    }

    fn eni(&self, last: u8) -> Eni {
        let address = Ipv4Addr::new(172, 31, 0, last);
        Eni {
            id: EniId::parse("eni-0123456789abcdef0").unwrap(),
            vpc: self.vpc.clone(),
            subnet: SubnetId::parse("subnet-0123456789abcdef0").unwrap(),
            mac: Mac::of_address(address),
            address,
            prefix_len: 20,
            gateway: Ipv4Addr::new(172, 31, 0, 1),
            resolver: Ipv4Addr::new(172, 31, 0, 2),
            private_dns_name: "ip-172-31-0-5.eu-central-1.compute.internal".into(),
        }
    }

    fn guest(&self, last: u8) -> Guest {
        let eni = self.eni(last);
        let (link, near) = self.runtime.block_on(async {
            let prepared = self.network().prepare_tap(&self.vpc).await.unwrap();
            self.network().attach_tap(prepared, &eni).await.unwrap()
        });
        let netns = netns::create_anonymous().unwrap();
        let far = netns::run_in(netns.as_fd(), || tap::create("eth0")).unwrap();
        let mtu = self.network().mtu(&self.vpc).unwrap();
        configure_inside(netns.as_fd(), &InterfaceSpec::of(&eni, mtu.into())).unwrap();
        Guest { netns, link, eni, carrier: Some(carry(near, far)) }
    }

    fn links(&self) -> String {
        let instance = Instance::of(self.state_dir.path()).unwrap();
        let script = format!("ip netns exec coracle-{instance}-{} ip -o link show type tun", self.vpc);
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Guest {
    fn run<T: Send>(&self, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        netns::run_in(self.netns.as_fd(), job)
    }

    /// Answers one connection with "hello".
    fn serve(&self, port: u16) {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    }

    fn udp(&self) -> UdpSocket {
        self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9000))).unwrap()
    }

    fn sh(&self, script: &str) {
        self.run(|| {
            sh(script);
            Ok(())
        })
        .unwrap();
    }
}

fn open(runtime: &tokio::runtime::Runtime, state_dir: &tempfile::TempDir) -> Network {
    let instance = Instance::of(state_dir.path()).unwrap();
    let region = Region::parse("eu-central-1").unwrap();
    runtime.block_on(Network::open(NetConfig { instance, region, upstream_dns: Some(Vec::new()) })).unwrap()
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn fetch(address: Ipv4Addr, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn guests_and_the_host_reach_guests() {
    on_private_host("guests_and_the_host_reach_guests", || {
        let host = Host::new();
        let (a, b) = (host.guest(5), host.guest(6));
        b.serve(80);
        assert_eq!(fetch(b.eni.address, 80).unwrap(), "hello");
        b.serve(81);
        assert_eq!(a.run(|| fetch(b.eni.address, 81)).unwrap(), "hello");
    });
}

#[test]
fn guests_do_not_spoof() {
    on_private_host("guests_do_not_spoof", || {
        let host = Host::new();
        let (a, b) = (host.guest(5), host.guest(6));
        let receiver = b.udp();
        receiver.set_read_timeout(Some(DEADLINE)).unwrap();
        let receive = || {
            let mut buffer = [0; 64];
            let (length, from) = receiver.recv_from(&mut buffer).unwrap();
            (String::from_utf8_lossy(&buffer[..length]).into_owned(), from.ip())
        };
        let honest = a.run(|| UdpSocket::bind((a.eni.address, 0))).unwrap();
        let spoofed = Ipv4Addr::new(172, 31, 9, 9);
        a.sh(&format!("ip addr add {spoofed}/32 dev eth0"));
        let liar = a.run(|| UdpSocket::bind((spoofed, 0))).unwrap();
        liar.send_to(b"spoofed", (b.eni.address, 9000)).unwrap();
        // Packets of one guest keep their order: what comes first tells.
        honest.send_to(b"honest", (b.eni.address, 9000)).unwrap();
        assert_eq!(receive(), ("honest".into(), a.eni.address.into()));
        a.sh("ip link set eth0 address 02:c0:ac:1f:00:06");
        honest.send_to(b"spoofed", (b.eni.address, 9000)).unwrap();
        a.sh(&format!("ip link set eth0 address {}", a.eni.mac));
        honest.send_to(b"honest mac", (b.eni.address, 9000)).unwrap();
        assert_eq!(receive().0, "honest mac");
    });
}

#[test]
fn a_tap_outlives_the_agent_but_not_its_machine() {
    on_private_host("a_tap_outlives_the_agent_but_not_its_machine", || {
        let mut host = Host::new();
        let mut guest = host.guest(5);
        // Prepared for nobody yet: it goes with the agent that made it.
        let waiting = host.runtime.block_on(host.network().prepare_tap(&host.vpc)).unwrap();
        assert_eq!(host.links().lines().count(), 2);
        drop(waiting);
        host.network = None;
        host.network = Some(open(&host.runtime, &host.state_dir));
        let missing = host.runtime.block_on(host.network().reconcile(vec![guest.link.clone()])).unwrap();
        assert_eq!(missing, []);
        assert_eq!(host.links().lines().count(), 1);
        guest.serve(80);
        assert_eq!(fetch(guest.eni.address, 80).unwrap(), "hello");

        guest.carrier = None;
        assert_eq!(host.links(), "");
        host.runtime.block_on(host.network().detach(&guest.link)).unwrap();
    });
}
