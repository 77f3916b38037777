//! The machine's network interface, as the agent configures that of a container sandbox: its
//! address is a /32, and everybody else is reached through the router.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model::sandbox::GuestSetup;

use crate::netlink::{Netlink, Request};

const INTERFACE: &str = "eth0";
/// Task metadata and credentials endpoint ("Amazon ECS task metadata endpoint version 4").
const TASK_METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);
/// How long the interface may take to appear, and to see its cable.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// What can be said before the task is known: loopback is up, IPv6 is off on interfaces to come,
/// any user may listen on port 80 and ping (Docker's defaults).
pub fn prepare() -> Result<()> {
    let netlink = Netlink::open()?;
    let lo = netlink.index("lo").context("find lo")?;
    netlink.send(&Request::up(lo, None, None))?;
    netlink.send(&Request::address(lo, TASK_METADATA_ADDRESS))?;
    disable_ipv6("default")?;
    for (name, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 65535")] {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).context(name)?;
    }
    Ok(())
}

/// Configures the machine's interface and waits for its cable to be plugged in.
///
/// # Errors
/// There is no interface, or the kernel refuses a value.
pub fn configure(setup: &GuestSetup, address: Ipv4Addr) -> Result<()> {
    let netlink = Netlink::open()?;
    let index = wait("the network interface", || netlink.index(INTERFACE).ok())?;
    disable_ipv6(INTERFACE)?;
    set_up(&netlink, index, setup, address)?;
    // A packet that is sent before is lost, and sent again a second later.
    wait("the network's cable", || {
        let carrier = fs::read_to_string(format!("/sys/class/net/{INTERFACE}/carrier")).ok()?;
        (carrier.trim() == "1").then_some(())
    })
}

/// Configures the interface of a machine that is a copy: the other machine has `old`.
///
/// # Errors
/// There is no interface, or the kernel refuses a value.
pub fn move_to(setup: &GuestSetup, old: Ipv4Addr, address: Ipv4Addr) -> Result<()> {
    let netlink = Netlink::open()?;
    clear(&netlink, netlink.index(INTERFACE).context("find the network interface")?, old)?;
    configure(setup, address)
}

fn clear(netlink: &Netlink, index: u32, old: Ipv4Addr) -> Result<()> {
    netlink.send(&Request::down(index))?;
    netlink.send(&Request::no_address(index, old))
}

fn set_up(netlink: &Netlink, index: u32, setup: &GuestSetup, address: Ipv4Addr) -> Result<()> {
    netlink.send(&Request::up(index, Some(setup.mac), Some(setup.mtu.into())))?;
    netlink.send(&Request::address(index, address))?;
    netlink.send(&Request::neighbour(index, setup.gateway, setup.gateway_mac))?;
    netlink.send(&Request::default_route(index, setup.gateway, address))
}

/// The VPC has no IPv6, and an interface's own link-local address would be noise.
fn disable_ipv6(interface: &str) -> Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context("disable_ipv6"),
    }
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// In a network namespace of a thread, which ends with it.
    #[test]
    fn an_interface_becomes_the_tasks() {
        let setup = GuestSetup {
            mac: [2, 0xc0, 1, 2, 3, 4],
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            gateway_mac: [2, 0xc0, 0xff, 0xff, 0xff, 1],
            mtu: 1400,
            memory_mib: 0,
            pids_max: 0,
            now: model::Timestamp(0),
            entropy: String::new(),
        };
        let test = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add eth0 type veth peer name other");
            let netlink = Netlink::open().unwrap();
            assert!(netlink.index("eth1").is_err());
            let index = netlink.index("eth0").unwrap();
            for _ in 0..2 {
                set_up(&netlink, index, &setup, Ipv4Addr::new(10, 0, 0, 5)).unwrap();
            }
            let link = ip("link show eth0");
            assert!(
                link.contains("02:c0:01:02:03:04") && link.contains("mtu 1400") && link.contains("UP"),
                "{link}"
            );
            let address = ip("-4 address show eth0");
            assert!(address.contains("10.0.0.5/32"), "{address}");
            let route = ip("route");
            assert!(
                route.contains("default via 10.0.0.1 dev eth0") && route.contains("src 10.0.0.5"),
                "{route}"
            );
            let neighbours = ip("neighbour");
            assert!(
                neighbours.contains("10.0.0.1 dev eth0 lladdr 02:c0:ff:ff:ff:01 PERMANENT"),
                "{neighbours}"
            );
            // A copy of the machine moves.
            let moved =
                GuestSetup { mac: [2, 0xc0, 1, 2, 3, 9], gateway: Ipv4Addr::new(10, 0, 1, 1), ..setup };
            clear(&netlink, index, Ipv4Addr::new(10, 0, 0, 5)).unwrap();
            assert!(!ip("route").contains("10.0.0.1"), "routes stay");
            set_up(&netlink, index, &moved, Ipv4Addr::new(10, 0, 1, 7)).unwrap();
            let (link, address, route) = (ip("link show eth0"), ip("-4 address show eth0"), ip("route"));
            assert!(link.contains("02:c0:01:02:03:09") && link.contains("UP"), "{link}");
            assert!(address.contains("10.0.1.7/32") && !address.contains("10.0.0.5"), "{address}");
            assert!(
                route.contains("default via 10.0.1.1 dev eth0") && route.contains("src 10.0.1.7"),
                "{route}"
            );
            let refused = netlink.send(&Request::address(9999, Ipv4Addr::LOCALHOST)).unwrap_err();
            assert!(format!("{refused:#}").contains("No such device"), "{refused:#}");
        });
        test.join().unwrap();
    }
}
