//! Taps, the links of microVMs, on the real kernel. Needs root and `/dev/net/tun`.
//!
//! The "guest" is a network namespace whose interface is a tap, too; a thread carries frames between
//! the two, as a machine's monitor does.

mod support;
#[path = "support/vpc_host.rs"]
mod vpc_host;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use agent::net::{InterfaceSpec, configure_inside, netns, tap};
use rustix::event::{PollFd, PollFlags, poll};
use support::on_private_host;
use vpc_host::{Host, Task, eni, fetch};

/// A guest, and what the agent knows of it.
struct Guest {
    task: Task,
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

fn host() -> Host {
    Host::new(Vec::new())
}

impl Host {
    fn guest(&self, last: u8) -> Guest {
        let eni = eni(&self.vpc, Ipv4Addr::new(172, 31, 0, last));
        let (link, near) = self.runtime.block_on(async {
            let prepared = self.network().prepare_tap(&self.vpc).await.unwrap();
            self.network().attach_tap(prepared, &eni).await.unwrap()
        });
        let netns = netns::create_anonymous().unwrap();
        let far = netns::run_in(netns.as_fd(), || tap::create("eth0")).unwrap();
        let mtu = self.network().mtu(&self.vpc).unwrap();
        configure_inside(netns.as_fd(), &InterfaceSpec::of(&eni, mtu.into())).unwrap();
        Guest { task: Task { netns, eni, link }, carrier: Some(carry(near, far)) }
    }

    fn links(&self) -> String {
        let script =
            format!("ip netns exec coracle-{}-{} ip -o link show type tun", self.instance(), self.vpc);
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn guests_and_the_host_reach_guests() {
    on_private_host("guests_and_the_host_reach_guests", || {
        let host = host();
        let (a, b) = (host.guest(5), host.guest(6));
        b.task.serve(80);
        assert_eq!(fetch(b.task.address(80)).unwrap(), "hello");
        assert_eq!(a.task.fetch(b.task.address(80)).unwrap(), "hello");
    });
}

#[test]
fn guests_do_not_spoof() {
    on_private_host("guests_do_not_spoof", || {
        let host = host();
        let (a, b) = (host.guest(5), host.guest(6));
        let (a, b) = (&a.task, &b.task);
        let receiver = b.udp(9000);
        let receive = || {
            let mut buffer = [0; 64];
            let (length, from) = receiver.recv_from(&mut buffer).unwrap();
            (String::from_utf8_lossy(&buffer[..length]).into_owned(), from.ip())
        };
        let honest = a.run(|| UdpSocket::bind((a.eni.address, 0))).unwrap();
        let spoofed = Ipv4Addr::new(172, 31, 9, 9);
        a.sh(&format!("ip addr add {spoofed}/32 dev eth0"));
        let liar = a.run(|| UdpSocket::bind((spoofed, 0))).unwrap();
        liar.send_to(b"spoofed", b.address(9000)).unwrap();
        // Packets of one guest keep their order: what comes first tells.
        honest.send_to(b"honest", b.address(9000)).unwrap();
        assert_eq!(receive(), ("honest".into(), a.eni.address.into()));
        a.sh("ip link set eth0 address 02:c0:ac:1f:00:06");
        honest.send_to(b"spoofed", b.address(9000)).unwrap();
        a.sh(&format!("ip link set eth0 address {}", a.eni.mac));
        honest.send_to(b"honest mac", b.address(9000)).unwrap();
        assert_eq!(receive().0, "honest mac");
    });
}

#[test]
fn a_tap_outlives_the_agent_but_not_its_machine() {
    on_private_host("a_tap_outlives_the_agent_but_not_its_machine", || {
        let mut host = host();
        let mut guest = host.guest(5);
        // Prepared for nobody yet: it goes with the agent that made it.
        let waiting = host.runtime.block_on(host.network().prepare_tap(&host.vpc)).unwrap();
        assert_eq!(host.links().lines().count(), 2);
        drop(waiting);
        host.crash_and_reopen();
        let missing = host.runtime.block_on(host.network().reconcile(vec![guest.task.link.clone()])).unwrap();
        assert_eq!(missing, []);
        assert_eq!(host.links().lines().count(), 1);
        guest.task.serve(80);
        assert_eq!(fetch(guest.task.address(80)).unwrap(), "hello");

        guest.carrier = None;
        assert_eq!(host.links(), "");
        host.runtime.block_on(host.network().detach(&guest.task.link)).unwrap();
    });
}
