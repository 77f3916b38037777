//! `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`: made for the task, writable in the
//! container, as Docker does it.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use model::sandbox::SandboxSpec;

use crate::scratch::DISK;

/// A longer one is none of ours any more, in bytes.
const MAX_FILE: u64 = 1 << 20;

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

/// Rewrites the files of one container for its task's new place, line by line: what the container
/// changed in them stays, and so does a file that it made too long to be one of these.
///
/// # Errors
/// A file cannot be read or written.
pub fn rewrite(key: &str, old: &SandboxSpec, new: &SandboxSpec) -> Result<()> {
    let dir = format!("{DISK}/etc/{key}");
    let name_line = |task: &SandboxSpec| format!("{}\n", task.hostname);
    for (name, old, new) in [
        ("hosts", hosts(old, &[]), hosts(new, &[])),
        ("resolv.conf", resolv_conf(old), resolv_conf(new)),
        ("hostname", name_line(old), name_line(new)),
    ] {
        let path = format!("{dir}/{name}");
        let mut content = String::new();
        let file = fs::File::open(&path).with_context(|| format!("open {path}"))?;
        let read = file.take(MAX_FILE).read_to_string(&mut content);
        if read.is_ok_and(|length| (length as u64) < MAX_FILE) {
            let moved = with_lines_replaced(&content, &old, &new);
            // In place: the file is mounted in the container.
            fs::write(&path, moved).context("no room on the task's disk")?;
        }
    }
    Ok(())
}

/// `content` with each line of `old` that is another in `new` replaced by that.
fn with_lines_replaced(content: &str, old: &str, new: &str) -> String {
    let changes: Vec<(&str, &str)> = old.lines().zip(new.lines()).filter(|(old, new)| old != new).collect();
    let line = |line: &str| {
        let text = line.strip_suffix('\n').unwrap_or(line);
        let change = changes.iter().find(|(old, _)| *old == text);
        change.map_or(line.to_owned(), |(_, new)| line.replacen(text, new, 1))
    };
    content.split_inclusive('\n').map(line).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_added_to_its_files_stays() {
        let (old, new) =
            ("127.0.0.1\tlocalhost\n10.0.0.5\tone one.x\n", "127.0.0.1\tlocalhost\n10.0.0.9\ttwo two.x\n");
        assert_eq!(with_lines_replaced(old, old, new), new);
        let changed = "10.0.0.5\tone one.x\n# mine\n10.0.0.5\tother";
        assert_eq!(with_lines_replaced(changed, old, new), "10.0.0.9\ttwo two.x\n# mine\n10.0.0.5\tother");
        assert_eq!(with_lines_replaced("", old, new), "");
        assert_eq!(with_lines_replaced("a", "a\n", "b\n"), "b");
    }
}
