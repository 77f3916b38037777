//! Which ids a container's process runs with: Docker's reading of `USER`.
//!
//! Source: Docker's documentation of `docker run --user` and the Dockerfile's `USER`; the rules for
//! supplementary groups are those of `getgrouplist(3)`, and only apply when no group is named.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::rootfs::open_in_root;
use crate::sandbox::ID_COUNT;

/// Real files have a few kilobytes; what a hostile image has beyond this is not read.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_SUPPLEMENTARY: usize = 1024;

/// The ids of a process, inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: u32,
    pub gid: u32,
    /// Always holds `gid`, so that no group of the supervisor's can remain.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

/// Why a user could not be resolved, in Docker's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    #[error("uids and gids must be in range 0-65535: {0}")]
    OutOfRange(u32),
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `user`, `user:group`, `uid`, `uid:gid` or any mix in the image at `rootfs`.
///
/// # Errors
/// A name is not in the image's files, or an id is not one of the task's.
pub fn resolve(rootfs: &Path, spec: &str) -> Result<ImageUser, UserError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();

    let mut found = None;
    for entry in lines(rootfs, "/etc/passwd").filter_map(|line| parse_passwd(&line)) {
        if entry.name == user || (found.is_none() && number == Some(entry.uid)) {
            let by_name = entry.name == user;
            found = Some(entry);
            if by_name {
                break;
            }
        }
    }
    let (name, uid, mut gid, home) = match (found, number) {
        (Some(entry), _) => (Some(entry.name), entry.uid, entry.gid, entry.home),
        (None, Some(uid)) => (None, uid, 0, String::new()),
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };

    let mut groups = Vec::new();
    if let Some(group) = group {
        let number = group.parse::<u32>().ok();
        let named = lines(rootfs, "/etc/group")
            .filter_map(|line| parse_group(&line))
            .find(|entry| entry.name == group);
        gid = match (named, number) {
            (Some(entry), _) => entry.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(UserError::UnknownGroup(group.to_owned())),
        };
    } else if let Some(name) = name {
        groups.extend(
            lines(rootfs, "/etc/group")
                .filter_map(|line| parse_group(&line))
                .filter(|entry| entry.members.contains(&name) && entry.gid < ID_COUNT)
                .map(|entry| entry.gid)
                .take(MAX_SUPPLEMENTARY),
        );
    }
    for id in [uid, gid] {
        if id >= ID_COUNT {
            return Err(UserError::OutOfRange(id));
        }
    }
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    let home = if home.starts_with('/') { PathBuf::from(home) } else { PathBuf::from("/") };
    Ok(ImageUser { uid, gid, groups, home })
}

/// The lines of a regular file of the image; nothing if there is none.
fn lines(rootfs: &Path, path: &str) -> impl Iterator<Item = String> + use<> {
    let file = open_in_root(rootfs, Path::new(path), OFlags::RDONLY)
        .ok()
        .filter(|file: &File| file.metadata().is_ok_and(|m| m.is_file()));
    file.into_iter().flat_map(|file| {
        BufReader::new(file.take(MAX_FILE))
            .split(b'\n')
            .map_while(Result::ok)
            .map(|line| String::from_utf8_lossy(&line).into_owned())
    })
}

fn parse_passwd(line: &str) -> Option<Passwd> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let _comment = fields.next();
    let home = fields.next().unwrap_or_default().to_owned();
    Some(Passwd { name, uid, gid, home })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next().unwrap_or_default().trim().split(',').map(str::to_owned).collect();
    Some(Group { name, gid, members })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\n# a comment\napp:x:1000:1001::/home/app:/bin/sh\n1000:x:7:8::/x:\nbig:x:70000:1::/:\n",
        )
        .unwrap();
        fs::write(dir.path().join("etc/group"), "root:x:0:\nwheel:x:10:root,app\nstaff:x:50:app\n").unwrap();
        dir
    }

    #[test]
    fn users_as_docker_reads_them() {
        let image = image();
        let user = |spec| resolve(image.path(), spec);
        let root = user("").unwrap();
        assert_eq!((root.uid, root.gid, root.groups, root.home), (0, 0, vec![0, 10], "/root".into()));
        let app = user("app").unwrap();
        assert_eq!(
            (app.uid, app.gid, app.groups, app.home),
            (1000, 1001, vec![1001, 10, 50], "/home/app".into())
        );
        let grouped = user("app:staff").unwrap();
        assert_eq!((grouped.gid, grouped.groups), (50, vec![50]));
        let unknown = user("4242:17").unwrap();
        assert_eq!(
            (unknown.uid, unknown.gid, unknown.groups, unknown.home),
            (4242, 17, vec![17], "/".into())
        );
        // A name made of digits wins over the number.
        assert_eq!(user("1000").unwrap().uid, 7);
        assert_eq!(
            user("nobody").unwrap_err().to_string(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            user("app:nogroup").unwrap_err().to_string(),
            "unable to find group nogroup: no matching entries in group file"
        );
        assert_eq!(user("big"), Err(UserError::OutOfRange(70000)));
        assert_eq!(user("4294967295"), Err(UserError::OutOfRange(u32::MAX)));
    }

    #[test]
    fn hostile_files_are_not_followed_out_or_waited_for() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "evil:x:0:0::/:\n").unwrap();
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("etc")).unwrap();
        let passwd = image.path().join("etc/passwd");
        std::os::unix::fs::symlink(outside.path().join("passwd"), &passwd).unwrap();
        assert!(resolve(image.path(), "evil").is_err());
        fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(resolve(image.path(), "evil").is_err());
        assert_eq!(resolve(image.path(), "5").unwrap().uid, 5);
    }
}
