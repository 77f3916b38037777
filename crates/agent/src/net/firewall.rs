//! nftables rules: one table in each VPC router, one on the host for each Coracle instance.
//!
//! Rules are written once, when a VPC gets its router; a task costs no `nft` call. Applying a
//! ruleset again is atomic and keeps the elements of its sets.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use model::network::Cidr;

use super::error::NetError;
use super::names::{HOST_LINK_PREFIX, TASK_LINK_PREFIX, UPLINK};

/// The table's name inside a router's namespace.
pub const ROUTER_TABLE: &str = "coracle";

/// Addresses that mean something only on one link: the metadata services of clouds
/// (169.254.169.254, 169.254.170.2, fd00:ec2::254) are the host's, not a task's.
const LINK_LOCAL: &str = "169.254.0.0/16";

/// Rules of a VPC's router. Default deny; between tasks, the default security group.
pub fn router_rules(resolver: Ipv4Addr) -> String {
    let task = TASK_LINK_PREFIX;
    format!(
        r#"
add table inet {ROUTER_TABLE}
flush table inet {ROUTER_TABLE}
table inet {ROUTER_TABLE} {{
  # Which MAC and IPv4 address may come from which link; filled as tasks are attached.
  set task_sources {{
    typeof iifname . ether saddr . ip saddr
  }}
  chain ingress {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{task}*" jump from_task
  }}
  chain from_task {{
    meta nfproto != ipv4 counter drop
    iifname . ether saddr . ip saddr != @task_sources counter drop
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "lo" accept
    iifname "{task}*" ip daddr {resolver} udp dport 53 accept
    iifname "{task}*" ip daddr {resolver} tcp dport 53 accept
    icmp type echo-request limit rate 100/second accept
    iifname "{task}*" reject with icmpx type admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname "{task}*" ip daddr {LINK_LOCAL} reject with icmpx type admin-prohibited
    iifname "{task}*" oifname "{task}*" jump security_groups
    iifname "{task}*" oifname "{UPLINK}" accept
    iifname "{UPLINK}" oifname "{task}*" accept
  }}
  # Security groups go here. Until a task can name its groups, all are in the VPC's default
  # group, whose members reach each other.
  chain security_groups {{
    accept
  }}
}}
"#
    )
}

/// A VPC as the host's rules see it.
#[derive(Debug, Clone)]
pub struct HostVpc {
    /// The host's end of the link to the router.
    pub link: String,
    pub cidr: Cidr,
}

/// Name of the host's table.
pub fn host_table(instance: &str) -> String {
    format!("coracle_{instance}")
}

/// Rules of the host. What comes from a router may go out (with the host's address), but not to
/// the host itself, nor to another VPC; towards tasks, only the host opens connections.
pub fn host_rules(instance: &str, vpcs: &[HostVpc]) -> String {
    let table = host_table(instance);
    let ours = format!("{HOST_LINK_PREFIX}{instance}*");
    let any = format!("{HOST_LINK_PREFIX}*");
    let sources: String = vpcs
        .iter()
        .map(|vpc| format!("    iifname \"{}\" ip saddr {} return\n", vpc.link, vpc.cidr))
        .collect();
    format!(
        r#"
add table inet {table}
flush table inet {table}
table inet {table} {{
  chain ingress {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{ours}" jump from_router
  }}
  chain from_router {{
    meta nfproto != ipv4 drop
{sources}    ip saddr {LINK_LOCAL} return
    drop
  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname "{ours}" ct state established,related accept
    iifname "{ours}" reject with icmpx type admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "{any}" oifname "{any}" reject with icmpx type admin-prohibited
    iifname "{ours}" ip daddr {LINK_LOCAL} reject with icmpx type admin-prohibited
    iifname "{ours}" ip saddr {LINK_LOCAL} drop
    oifname "{ours}" ct state established,related accept
    oifname "{ours}" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname "{ours}" oifname != "{any}" masquerade
  }}
}}
"#
    )
}

/// Deletes a table of the calling thread's namespace; one that does not exist is fine.
pub fn delete_table(name: &str) -> Result<(), NetError> {
    apply(&format!("add table inet {name}\ndelete table inet {name}\n"))
}

/// Runs `nft -f -` in the calling thread's network namespace. All or nothing.
pub fn apply(script: &str) -> Result<(), NetError> {
    let run = || {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // nft that dies early says why on its standard error.
            let _ = stdin.write_all(script.as_bytes());
        }
        child.wait_with_output()
    };
    let output = run().map_err(NetError::io("run nft (package nftables)"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::Firewall { program: "nft", complaint: first_line(&output.stderr) })
}

/// Where another firewall's default is to drop what the host forwards, an accept in our own table
/// is not enough (each table decides; a drop is final). Docker sets `FORWARD` to DROP and leaves
/// the chain `DOCKER-USER` to others; firewalls such as ufw only set the policy. There, an accept
/// for our links is put first. Works with iptables-nft and -legacy; does nothing without iptables.
pub fn open_foreign_forward(instance: &str) -> Result<(), NetError> {
    let Some(chain) = foreign_forward_chain() else {
        return Ok(());
    };
    for rule in foreign_rules(instance) {
        if !iptables(&["-C", chain], &rule)? && !iptables(&["-I", chain], &rule)? {
            return Err(NetError::Firewall {
                program: "iptables",
                complaint: format!("cannot insert a rule into {chain}"),
            });
        }
    }
    Ok(())
}

/// Takes back what [`open_foreign_forward`] inserted, from both chains.
pub fn close_foreign_forward(instance: &str) {
    for chain in ["DOCKER-USER", "FORWARD"] {
        for rule in foreign_rules(instance) {
            while matches!(iptables(&["-D", chain], &rule), Ok(true)) {}
        }
    }
}

/// The chain that would drop what we forward, if there is one.
pub fn foreign_forward_chain() -> Option<&'static str> {
    let list = |chain: &str| {
        let output = Command::new("iptables").args(["-w", "-S", chain]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if list("DOCKER-USER").is_some() {
        return Some("DOCKER-USER");
    }
    list("FORWARD")?.lines().any(|line| line == "-P FORWARD DROP").then_some("FORWARD")
}

fn foreign_rules(instance: &str) -> [Vec<String>; 2] {
    let links = format!("{HOST_LINK_PREFIX}{instance}+");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    [
        words(&format!("-i {links} -j ACCEPT")),
        words(&format!("-o {links} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")),
    ]
}

/// Whether iptables succeeded.
fn iptables(action: &[&str], rule: &[String]) -> Result<bool, NetError> {
    let status = Command::new("iptables")
        .arg("-w")
        .args(action)
        .args(rule)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(NetError::io("run iptables"))?;
    Ok(status.success())
}

fn first_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().next().unwrap_or("no message").chars().take(300).collect()
}
