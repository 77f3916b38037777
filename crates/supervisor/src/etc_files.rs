//! `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`: made for the task, writable in the
//! container, as Docker does it.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use model::sandbox::SandboxSpec;

use crate::scratch::DISK;

/// A generated file and where it belongs in the container.
pub struct EtcFile {
    pub source: PathBuf,
    pub destination: &'static str,
}

/// Writes the files of one container to the task's disk.
///
/// # Errors
/// The disk is full.
pub fn write(
    key: &str,
    task: &SandboxSpec,
    extra_hosts: &[(String, String)],
    uid_base: u32,
) -> Result<Vec<EtcFile>> {
    let dir = format!("{DISK}/etc/{key}");
    fs::create_dir_all(&dir).context("no room on the task's disk")?;
    let files = [
        ("hosts", "/etc/hosts", hosts(task, extra_hosts)),
        ("resolv.conf", "/etc/resolv.conf", resolv_conf(task)),
        ("hostname", "/etc/hostname", format!("{}\n", task.hostname)),
    ];
    files
        .into_iter()
        .map(|(name, destination, content)| {
            let source = PathBuf::from(format!("{dir}/{name}"));
            fs::write(&source, content).context("no room on the task's disk")?;
            std::os::unix::fs::chown(&source, Some(uid_base), Some(uid_base))?;
            Ok(EtcFile { source, destination })
        })
        .collect()
}

fn hosts(task: &SandboxSpec, extra_hosts: &[(String, String)]) -> String {
    let short = task.hostname.split('.').next().unwrap_or_default();
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for (name, address) in extra_hosts {
        let _ = writeln!(text, "{}\t{}", one_word(address), one_word(name));
    }
    let _ = if short == task.hostname {
        writeln!(text, "{}\t{short}", task.address)
    } else {
        writeln!(text, "{}\t{} {short}", task.address, task.hostname)
    };
    text
}

fn resolv_conf(task: &SandboxSpec) -> String {
    let mut text = format!("nameserver {}\n", task.resolver);
    if let Some(domain) = &task.search_domain {
        let _ = writeln!(text, "search {}", one_word(domain));
    }
    text
}

/// A value must not add lines or fields of its own.
fn one_word(value: &str) -> String {
    value.split_whitespace().next().unwrap_or_default().to_owned()
}
