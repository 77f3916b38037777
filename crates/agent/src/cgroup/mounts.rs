//! Where cgroup hierarchies are mounted: proc(5), `/proc/pid/mountinfo`.

use std::path::PathBuf;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub path: PathBuf,
    /// True for `cgroup2`.
    pub unified: bool,
    /// Version 1: the controllers (`memory`), and `name=…` of a named hierarchy.
    pub options: Vec<String>,
}

/// The cgroup mounts among all; the first mount of a path counts last, as it is the one on top.
pub fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point rw,options optional-fields - fstype source super-options
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let unified = match right.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = right.nth(1)?.split(',').map(str::to_owned).collect();
    let path = unescape(left.split(' ').nth(4)?);
    Some(Mount { path, unified, options })
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(text: &str) -> PathBuf {
    let mut rest = text;
    let mut path = String::new();
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                path.push('\\');
                rest = after;
            }
        }
    }
    path.push_str(rest);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup_mounts() {
        let mounts = parse(
            "25 30 0:23 / /sys rw,relatime shared:7 - sysfs sysfs rw\n\
             31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw,nsdelegate\n\
             broken line\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].options, ["rw", "cpu", "cpuacct"]);
        assert!(!mounts[0].unified && mounts[1].unified);
        assert_eq!(mounts[1].path, PathBuf::from("/sys/fs/cgroup/a b"));
    }
}
