//! The host's network on the real kernel. Needs root.

mod support;
#[path = "support/vpc_host.rs"]
mod vpc_host;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use agent::net::{InterfaceSpec, NameTable, NetError, configure_inside, netns};
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use model::VpcId;
use model::network::Cidr;
use support::on_private_host;
use vpc_host::{DEADLINE, Host, Task, eni, fetch, serve, sh};

/// On the host's loopback, as with systemd-resolved.
const UPSTREAM_DNS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5353));

fn host() -> Host {
    Host::new(vec![UPSTREAM_DNS])
}

impl Host {
    fn task(&self, last: u8) -> Task {
        let netns = netns::create_anonymous().unwrap();
        let eni = eni(&self.vpc, Ipv4Addr::new(172, 31, 0, last));
        let handle = OwnedFd::from(netns.try_clone().unwrap());
        let link = self.runtime.block_on(async {
            let prepared = self.network().prepare(&self.vpc, handle).await.unwrap();
            self.network().attach(prepared, &eni).await.unwrap()
        });
        Task { netns, eni, link }
    }
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn stdout(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn refused(result: &io::Result<String>) -> bool {
    // What an ICMP "administratively prohibited" becomes: at once, not after a time-out.
    matches!(result, Err(error) if error.kind() == io::ErrorKind::HostUnreachable)
}

#[test]
fn tasks_and_the_host_reach_tasks() {
    on_private_host("tasks_and_the_host_reach_tasks", || {
        let host = host();
        let (a, b) = (host.task(5), host.task(6));
        b.serve(80);
        assert_eq!(a.fetch(b.address(80)).unwrap(), "hello");
        assert_eq!(fetch(b.address(80)).unwrap(), "hello", "from the host");
        // An address without a task is refused by the router, at once.
        let nobody = a.fetch(SocketAddrV4::new(Ipv4Addr::new(172, 31, 0, 77), 80));
        assert!(refused(&nobody), "{nobody:?}");
        // A task's own loopback works, and is its own.
        let local = a.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 81))).unwrap();
        serve(local);
        assert_eq!(a.fetch(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 81)).unwrap(), "hello");
        assert!(b.fetch(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 81)).is_err());
        assert!(b.fetch(a.address(81)).is_err());
        // The task's end can be configured again from its namespace alone.
        a.sh("ip addr flush dev eth0; ip link set eth0 down");
        configure_inside(a.netns.as_fd(), &InterfaceSpec::of(&a.eni, 1500)).unwrap();
        configure_inside(a.netns.as_fd(), &InterfaceSpec::of(&a.eni, 1500)).unwrap();
        assert_eq!(a.fetch(b.address(80)).unwrap(), "hello");
    });
}

#[test]
fn tasks_do_not_reach_the_host() {
    on_private_host("tasks_do_not_reach_the_host", || {
        let host = host();
        sh(
            "ip link add wan0 type veth peer name wan1; ip addr add 198.51.100.1/24 dev wan0; ip link set wan0 up",
        );
        let task = host.task(5);
        serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
        serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 8081)).unwrap());
        let at = |address, port| SocketAddrV4::new(address, port);
        assert_eq!(fetch(at(Ipv4Addr::LOCALHOST, 8081)).unwrap(), "hello", "the server itself works");

        let link = stdout("ip -4 -o addr show | sed -n 's/.*inet \\(169[0-9.]*\\).*/\\1/p'");
        let link: Ipv4Addr = link.trim().parse().unwrap();
        for address in [link, Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(169, 254, 169, 254)] {
            let answer = task.fetch(at(address, 8080));
            assert!(refused(&answer), "{address}: {answer:?}");
        }
        // The router is not a way in either, and has nothing but DNS to say.
        for address in [Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2)] {
            let answer = task.fetch(at(address, 8080));
            assert!(refused(&answer), "{address}: {answer:?}");
        }
        for port in [8080, 8081] {
            assert!(task.fetch(at(Ipv4Addr::LOCALHOST, port)).is_err());
        }
        // Not even by routing the host's loopback to the router (it is a martian there).
        task.sh("ip route add local 0.0.0.0/32 dev lo; ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via 172.31.0.1 dev eth0 onlink; sysctl -qw net.ipv4.conf.all.route_localnet=1");
        let socket = task.udp(0);
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 8082)).unwrap();
        server.set_nonblocking(true).unwrap();
        let _ = socket.send_to(b"x", at(Ipv4Addr::LOCALHOST, 8082));
        task.serve(80);
        assert_eq!(fetch(task.address(80)).unwrap(), "hello");
        assert!(server.recv_from(&mut [0; 8]).is_err());
    });
}

#[test]
fn spoofed_packets_are_dropped() {
    on_private_host("spoofed_packets_are_dropped", || {
        let host = host();
        let (a, b, c) = (host.task(5), host.task(6), host.task(7));
        let receiver = c.udp(9000);
        let receive = || {
            let mut buffer = [0; 64];
            let (length, from) = receiver.recv_from(&mut buffer).unwrap();
            (String::from_utf8_lossy(&buffer[..length]).into_owned(), from.ip())
        };
        // Another task's address, an address of nobody, an outside address.
        for (i, spoofed) in
            [b.eni.address, Ipv4Addr::new(172, 31, 9, 9), Ipv4Addr::new(8, 8, 8, 8)].iter().enumerate()
        {
            a.sh(&format!("ip addr add {spoofed}/32 dev eth0"));
            let socket = a.run(|| UdpSocket::bind((*spoofed, 0))).unwrap();
            socket.send_to(b"spoofed", c.address(9000)).unwrap();
            // Packets of one task keep their order: what comes first tells.
            let honest = a.run(|| UdpSocket::bind((a.eni.address, 0))).unwrap();
            honest.send_to(format!("honest {i}").as_bytes(), c.address(9000)).unwrap();
            assert_eq!(receive(), (format!("honest {i}"), a.eni.address.into()));
        }
        // The right address from another MAC.
        let honest = a.run(|| UdpSocket::bind((a.eni.address, 0))).unwrap();
        a.sh("ip link set eth0 address 02:c0:ac:1f:00:06");
        honest.send_to(b"spoofed", c.address(9000)).unwrap();
        a.sh(&format!("ip link set eth0 address {}", a.eni.mac));
        honest.send_to(b"honest mac", c.address(9000)).unwrap();
        assert_eq!(receive().0, "honest mac");
    });
}

#[test]
fn the_outside_sees_the_hosts_address() {
    on_private_host("the_outside_sees_the_hosts_address", || {
        let host = host();
        // As on a Docker host.
        sh("iptables -P FORWARD DROP");
        host.runtime.block_on(host.network().reconcile(Vec::new())).unwrap();
        let outside = netns::create_anonymous().unwrap();
        sh(
            "ip link add wan0 type veth peer name wan1; ip addr add 198.51.100.1/24 dev wan0; ip link set wan0 up",
        );
        let pid = std::process::id();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&outside);
        sh(&format!("ip link set wan1 netns /proc/{pid}/fd/{fd}"));
        let listener = netns::run_in(outside.as_fd(), || {
            sh("ip addr add 198.51.100.2/24 dev wan1; ip link set wan1 up; ip route add 172.31.0.0/16 via 198.51.100.1");
            TcpListener::bind("198.51.100.2:80")
        })
        .unwrap();
        let (peers, seen) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(b"hello");
                let _ = peers.send(peer.ip());
            }
        });
        let task = host.task(5);
        task.serve(80);
        assert_eq!(task.fetch("198.51.100.2:80".parse().unwrap()).unwrap(), "hello");
        assert_eq!(seen.recv_timeout(DEADLINE).unwrap(), Ipv4Addr::new(198, 51, 100, 1));
        // The way back in is only for answers, though the host would forward.
        let inwards = netns::run_in(outside.as_fd(), || {
            Ok(TcpStream::connect_timeout(&task.address(80).into(), Duration::from_millis(300)).is_ok())
        });
        assert!(!inwards.unwrap());
        host.runtime.block_on(host.network().teardown()).unwrap();
        assert_eq!(stdout("iptables -S FORWARD").trim(), "-P FORWARD DROP");
    });
}

#[test]
fn a_crashed_agents_network_is_taken_over() {
    on_private_host("a_crashed_agents_network_is_taken_over", || {
        let mut host = host();
        let (a, b, gone) = (host.task(5), host.task(6), host.task(7));
        b.serve(80);
        let mut open_before = a.run(|| TcpStream::connect(b.address(80))).unwrap();
        host.crash_and_reopen();
        assert_eq!(host.network().vpc_cidr(&host.vpc), Some(cidr("172.31.0.0/16")));
        assert_eq!(a.fetch(b.address(80)).unwrap(), "hello", "before anything is said again");
        let keep = vec![a.link.clone(), b.link.clone()];
        let missing = host.runtime.block_on(host.network().reconcile(keep.clone())).unwrap();
        assert_eq!(missing, []);
        let mut text = String::new();
        open_before.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(a.fetch(b.address(80)).unwrap(), "hello");
        assert_eq!(gone.run(|| Ok(stdout("ip -o link show eth0"))).unwrap(), "");
        // A new task beside them, and reconciling again does not touch it.
        let new = host.task(8);
        host.runtime.block_on(host.network().reconcile(keep)).unwrap();
        assert_eq!(new.fetch(b.address(80)).unwrap(), "hello");
        // A task that died with its namespace is reported.
        let link = b.link.clone();
        drop(b.netns);
        host.runtime.block_on(host.network().detach(&new.link)).unwrap();
        host.runtime.block_on(host.network().detach(&new.link)).unwrap();
        assert!(new.fetch(a.address(80)).is_err());
        let _ = link;
    });
}

#[test]
fn a_link_dies_with_its_namespace() {
    on_private_host("a_link_dies_with_its_namespace", || {
        let mut host = host();
        let task = host.task(5);
        let link = task.link.clone();
        drop(task);
        let deadline = Instant::now() + DEADLINE;
        // The kernel takes namespaces down in the background.
        loop {
            host.crash_and_reopen();
            let missing = host.runtime.block_on(host.network().reconcile(vec![link.clone()])).unwrap();
            if missing == [link.clone()] {
                break;
            }
            assert!(Instant::now() < deadline, "the link outlives its namespace");
        }
        host.runtime.block_on(host.network().detach(&link)).unwrap();
    });
}

#[test]
fn teardown_leaves_the_host_as_it_was() {
    on_private_host("teardown_leaves_the_host_as_it_was", || {
        sh("ip link set lo up");
        let look = || {
            // Interface numbers and namespaces of other processes are not ours to compare.
            stdout(
                "ip -o link | cut -d' ' -f2; ip -4 route show table all; nft list tables; ls /run/netns || true",
            )
        };
        let before = look();
        let host = host();
        let task = host.task(5);
        assert_ne!(look(), before);
        host.runtime.block_on(host.network().teardown()).unwrap();
        assert_eq!(look(), before);
        assert!(task.fetch("172.31.0.1:80".parse().unwrap()).is_err());
        host.runtime.block_on(host.network().teardown()).unwrap();
    });
}

#[test]
fn blocks_in_use_are_refused() {
    on_private_host("blocks_in_use_are_refused", || {
        let host = host();
        sh(
            "ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip addr add 10.9.1.1/24 dev lan0",
        );
        let other = VpcId::parse("vpc-00000000000000009").unwrap();
        let ensure = |block: &str| host.runtime.block_on(host.network().ensure_vpc(&other, cidr(block)));
        assert!(matches!(ensure("10.9.0.0/16"), Err(NetError::CidrInUse { .. })));
        assert!(matches!(ensure("172.31.16.0/20"), Err(NetError::CidrInUse { .. })));
        assert!(matches!(ensure("10.8.0.0/30"), Err(NetError::CidrTooSmall(_))));
        let free = host.runtime.block_on(host.network().free_cidr(cidr("172.31.0.0/16"))).unwrap();
        assert_eq!(free, cidr("172.30.0.0/16"));
        ensure("172.30.0.0/16").unwrap();
        ensure("172.30.0.0/16").unwrap();
    });
}

#[test]
fn vpcs_do_not_reach_each_other() {
    on_private_host("vpcs_do_not_reach_each_other", || {
        let host = host();
        let near = host.task(5);
        near.serve(80);
        let other = VpcId::parse("vpc-00000000000000009").unwrap();
        host.runtime.block_on(host.network().ensure_vpc(&other, cidr("172.30.0.0/16"))).unwrap();
        let netns = netns::create_anonymous().unwrap();
        let mut eni = eni(&other, Ipv4Addr::new(172, 30, 0, 5));
        eni.gateway = Ipv4Addr::new(172, 30, 0, 1);
        let prepare = |vpc: &VpcId| {
            let handle = OwnedFd::from(netns.try_clone().unwrap());
            host.runtime.block_on(host.network().prepare(vpc, handle)).unwrap()
        };
        // A link that was prepared for another VPC is refused, and its namespace can be used again.
        let wrong = host.runtime.block_on(host.network().attach(prepare(&host.vpc), &eni));
        assert!(matches!(wrong, Err(NetError::WrongVpc { .. })));
        let link = host.runtime.block_on(host.network().attach(prepare(&other), &eni)).unwrap();
        let far = Task { netns, eni, link };
        far.serve(80);
        assert_eq!(fetch(far.address(80)).unwrap(), "hello", "from the host");
        let (there, back) = (near.fetch(far.address(80)), far.fetch(near.address(80)));
        assert!(refused(&there) && refused(&back), "{there:?} {back:?}");
    });
}

/// A DNS server on the host's loopback: UDP only, `outside.example` is 192.0.2.80, all else does
/// not exist. Returns how many queries it has had.
fn upstream() -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind(UPSTREAM_DNS).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            counter.fetch_add(1, Ordering::SeqCst);
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.add_query(question.clone());
            if question.name().to_ascii().eq_ignore_ascii_case("outside.example.") {
                let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
                answer.add_answer(Record::from_rdata(question.name().clone(), 300, data));
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    count
}

/// Asks the VPC's resolver from inside a task, over UDP or TCP.
fn ask(task: &Task, name: &str, kind: RecordType, tcp: bool) -> (ResponseCode, Vec<String>) {
    let mut query = Message::query();
    query.add_query(Query::query(name.parse().unwrap(), kind));
    let bytes = query.to_vec().unwrap();
    let resolver = SocketAddrV4::new(task.eni.resolver, 53);
    let answer = if tcp {
        task.run(|| {
            let mut stream = TcpStream::connect_timeout(&resolver.into(), DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        })
        .unwrap()
    } else {
        let socket = task.udp(0);
        socket.connect(resolver).unwrap();
        socket.send(&bytes).unwrap();
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
}

#[test]
fn the_resolver_answers_at_base_plus_two() {
    on_private_host("the_resolver_answers_at_base_plus_two", || {
        let mut host = host();
        let task = host.task(5);
        let found = |text: &str| (ResponseCode::NoError, vec![text.to_owned()]);
        let private = "ip-172-31-0-6.eu-central-1.compute.internal.";
        // Its own names need no server elsewhere; the others say clearly that there is none.
        assert_eq!(ask(&task, private, RecordType::A, false), found("172.31.0.6"));
        assert_eq!(ask(&task, "outside.example.", RecordType::A, false).0, ResponseCode::ServFail);
        let queries = upstream();
        for tcp in [false, true] {
            assert_eq!(ask(&task, private, RecordType::A, tcp), found("172.31.0.6"));
            assert_eq!(
                ask(&task, "5.0.31.172.in-addr.arpa.", RecordType::PTR, tcp),
                found("ip-172-31-0-5.eu-central-1.compute.internal.")
            );
            assert_eq!(ask(&task, "outside.example.", RecordType::A, tcp), found("192.0.2.80"));
            assert_eq!(ask(&task, "nobody.example.", RecordType::A, tcp).0, ResponseCode::NXDomain);
        }
        let asked = queries.load(Ordering::SeqCst);
        assert_eq!(ask(&task, "OUTSIDE.example.", RecordType::A, false), found("192.0.2.80"));
        assert_eq!(queries.load(Ordering::SeqCst), asked, "answered from the cache");

        let table = NameTable {
            zones: vec!["local".into()],
            addresses: [("db.local".into(), vec![Ipv4Addr::new(172, 31, 0, 6)])].into(),
            ..NameTable::default()
        };
        host.network().names(&host.vpc).unwrap().replace(table);
        assert_eq!(ask(&task, "db.local.", RecordType::A, false), found("172.31.0.6"));

        // Bytes that are no query do not stop it.
        let socket = task.udp(0);
        for bytes in [&b""[..], b"x", &[0xff; 12], &[0; 12], &[0xc0; 600]] {
            socket.send_to(bytes, (task.eni.resolver, 53)).unwrap();
        }
        let mut silent = task.run(|| TcpStream::connect((task.eni.resolver, 53))).unwrap();
        silent.write_all(&[0xff]).unwrap();
        host.crash_and_reopen();
        assert_eq!(ask(&task, "outside.example.", RecordType::A, true), found("192.0.2.80"));
        // What listens there is not reached from the host.
        assert!(
            TcpStream::connect_timeout(&(task.eni.resolver, 53).into(), Duration::from_millis(300)).is_err()
        );
    });
}

/// Prints what a task's network costs; asserts nothing about time.
#[test]
fn cost_of_a_task() {
    on_private_host("cost_of_a_task", || {
        let host = host();
        let mut prepares = Vec::new();
        let mut attaches = Vec::new();
        let mut detaches = Vec::new();
        for last in 10..60 {
            let netns = netns::create_anonymous().unwrap();
            let eni = eni(&host.vpc, Ipv4Addr::new(172, 31, 0, last));
            let handle = OwnedFd::from(netns.try_clone().unwrap());
            host.runtime.block_on(async {
                let start = Instant::now();
                let prepared = host.network().prepare(&host.vpc, handle).await.unwrap();
                prepares.push(start.elapsed());
                let start = Instant::now();
                let link = host.network().attach(prepared, &eni).await.unwrap();
                attaches.push(start.elapsed());
                let start = Instant::now();
                host.network().detach(&link).await.unwrap();
                detaches.push(start.elapsed());
            });
        }
        for (what, mut times) in [("prepare", prepares), ("attach", attaches), ("detach", detaches)] {
            times.sort();
            println!("{what}: p50 {:?} p98 {:?}", times[25], times[48]);
        }
    });
}
