//! Directories of control groups: the file operations that both versions share.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::CgroupError;

/// Makes a group; one that exists is fine.
pub fn create(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(CgroupError::io("create", path)),
    }
}

/// Writes a control file.
pub fn write(path: &Path, value: impl ToString) -> Result<(), CgroupError> {
    fs::write(path, value.to_string()).map_err(CgroupError::io("write", path))
}

/// Reads a control file; `None` when it, or its group, does not exist.
pub fn read(path: &Path) -> Result<Option<String>, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(CgroupError::io("read", path)(error)),
    }
}

/// Reads a control file that has one number; `None` when it does not exist or has none.
pub fn read_number(path: &Path) -> Result<Option<u64>, CgroupError> {
    Ok(read(path)?.and_then(|text| text.trim().parse().ok()))
}

/// The number after `key` in a file of `key number` lines; `None` when there is none.
pub fn read_keyed(path: &Path, key: &str) -> Result<Option<u64>, CgroupError> {
    Ok(read(path)?.and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }))
}

/// Names of the groups below; none when the group does not exist.
pub fn children(path: &Path) -> Result<Vec<String>, CgroupError> {
    let failed = || CgroupError::io("list", path);
    let entries = match fs::read_dir(path) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = match entry {
            Err(error) if is_gone(&error) => break,
            other => other.map_err(failed())?,
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Adds the processes of a group and all below it to `pids`.
pub fn processes(path: &Path, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    if let Some(text) = read(&path.join("cgroup.procs"))? {
        // A process of a foreign pid namespace is listed as 0.
        pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0));
    }
    for child in children(path)? {
        processes(&path.join(child), pids)?;
    }
    Ok(())
}

/// Removes a group and all below it. While the kernel says that a group is busy (a process that
/// was killed is not quite gone), tries again until the deadline.
pub fn remove(path: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let mut pause = Duration::from_micros(200);
    loop {
        for child in children(path)? {
            remove(&path.join(child), deadline)?;
        }
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => {
                let busy = error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
                    || error.kind() == io::ErrorKind::DirectoryNotEmpty;
                if !busy || Instant::now() >= deadline {
                    return Err(CgroupError::io("remove", path)(error));
                }
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Files of a group that is being removed answer ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}
