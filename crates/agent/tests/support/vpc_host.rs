//! A host with the default VPC, and tasks on its network.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use agent::instance::Instance;
use agent::net::{NetConfig, Network, TaskLink, netns};
use model::network::{Eni, Mac};
use model::{EniId, Region, SubnetId, VpcId};

pub const DEADLINE: Duration = Duration::from_secs(5);

/// A host with the default VPC.
pub struct Host {
    pub runtime: tokio::runtime::Runtime,
    state_dir: tempfile::TempDir,
    upstream_dns: Vec<SocketAddr>,
    /// `None` while the agent is down.
    agent: Option<Network>,
    pub vpc: VpcId,
}

impl Host {
    pub fn new(upstream_dns: Vec<SocketAddr>) -> Self {
        sh("ip link set lo up");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state_dir = tempfile::tempdir().unwrap();
        let vpc = VpcId::parse("vpc-0123456789abcdef0").unwrap();
        let mut host = Self { runtime, state_dir, upstream_dns, agent: None, vpc };
        host.crash_and_reopen();
        let block = "172.31.0.0/16".parse().unwrap();
        host.runtime.block_on(host.network().ensure_vpc(&host.vpc, block)).unwrap();
        host
    }

    /// As after a kill -9 of the agent: a new process finds what the old one left.
    pub fn crash_and_reopen(&mut self) {
        self.agent = None;
        let config = NetConfig {
            instance: self.instance(),
            region: Region::parse("eu-central-1").unwrap(),
            upstream_dns: Some(self.upstream_dns.clone()),
        };
        self.agent = Some(self.runtime.block_on(Network::open(config)).unwrap());
    }

    pub fn network(&self) -> &Network {
        self.agent.as_ref().unwrap()
    }

    pub fn instance(&self) -> Instance {
        Instance::of(self.state_dir.path()).unwrap()
    }
}

/// A network interface in a VPC's first subnet.
pub fn eni(vpc: &VpcId, address: Ipv4Addr) -> Eni {
    Eni {
        id: EniId::parse("eni-0123456789abcdef0").unwrap(),
        vpc: vpc.clone(),
        subnet: SubnetId::parse("subnet-0123456789abcdef0").unwrap(),
        mac: Mac::of_address(address),
        address,
        prefix_len: 20,
        gateway: Ipv4Addr::new(172, 31, 0, 1),
        resolver: Ipv4Addr::new(172, 31, 0, 2),
        private_dns_name: "ip-172-31-0-5.eu-central-1.compute.internal".into(),
    }
}

/// A task's network namespace, and what the agent knows of it.
pub struct Task {
    pub netns: File,
    pub eni: Eni,
    pub link: TaskLink,
}

impl Task {
    pub fn run<T: Send>(&self, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        netns::run_in(self.netns.as_fd(), job)
    }

    pub fn address(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.eni.address, port)
    }

    /// Serves "hello" to each connection, until the test ends.
    pub fn serve(&self, port: u16) {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        serve(listener);
    }

    pub fn fetch(&self, from: SocketAddrV4) -> io::Result<String> {
        self.run(|| fetch(from))
    }

    pub fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Runs a command inside the task's network namespace.
    pub fn sh(&self, script: &str) {
        self.run(|| {
            sh(script);
            Ok(())
        })
        .unwrap();
    }
}

pub fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
        }
    });
}

pub fn fetch(from: SocketAddrV4) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&from.into(), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
