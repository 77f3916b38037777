//! Volumes: directories on the task's disk, filled from the image on first use.
//!
//! Docker's rule for named volumes: when a volume is empty and is mounted over a directory of the
//! image, it takes over that directory's content, owner and mode. Fargate does this for paths that
//! the image declares with `VOLUME` ("Use bind mounts with Amazon ECS"); without that declaration
//! a Fargate volume stays empty and root's. Coracle follows Docker for every path: an image that
//! runs on Fargate sees the same, and one that needs the content gets it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
    flistxattr, fsetxattr, fstat, mkdirat, openat, readlinkat, symlinkat,
};

use crate::rootfs::open_in_root;
use crate::scratch::DISK;

/// Deeper trees of an image are not copied: each level holds two descriptors open.
const MAX_DEPTH: u32 = 256;

/// A directory on the task's disk.
#[derive(Clone, Debug)]
pub struct Volume {
    path: PathBuf,
}

impl Volume {
    /// Makes (or finds) the volume known as `key` on the disk. A new one belongs to the task's
    /// root.
    pub fn open(key: &str, uid_base: u32) -> Result<Self> {
        let path = PathBuf::from(format!("{DISK}/volume/{key}"));
        match fs::create_dir(&path) {
            Ok(()) => std::os::unix::fs::chown(&path, Some(uid_base), Some(uid_base))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context("no room for a volume on the task's disk"),
        }
        Ok(Self { path })
    }

    /// Where containers mount it from.
    pub fn source(&self) -> PathBuf {
        self.path.clone()
    }

    /// Copies what the image has at `path` if the volume is empty.
    ///
    /// # Errors
    /// The disk is full, or the image's tree is too deep.
    pub fn fill(&self, rootfs: &Path, path: &Path) -> Result<()> {
        if fs::read_dir(&self.path)?.next().is_some() {
            return Ok(());
        }
        let Ok(source) = open_in_root(rootfs, path, OFlags::RDONLY | OFlags::DIRECTORY) else {
            return Ok(());
        };
        let target = File::open(&self.path)?;
        copy_directory(&source, &target, 0)
            .with_context(|| format!("copy {} of the image into its volume", path.display()))
    }
}

fn copy_directory(source: &File, target: &File, depth: u32) -> Result<()> {
    if depth > MAX_DEPTH {
        anyhow::bail!("directories nested deeper than {MAX_DEPTH}");
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(source, target, name, depth)?;
        }
    }
    copy_attributes(source, target)
}

fn copy_entry(source: &File, target: &File, name: &CStr, depth: u32) -> Result<()> {
    let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(target, name, Mode::RWXU)?;
            let from = File::from(openat(source, name, open | OFlags::DIRECTORY, Mode::empty())?);
            let to = File::from(openat(target, name, open | OFlags::DIRECTORY, Mode::empty())?);
            copy_directory(&from, &to, depth + 1)
        }
        FileType::RegularFile => {
            let mut from = File::from(openat(source, name, open, Mode::empty())?);
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut to = File::from(openat(target, name, create, Mode::RUSR | Mode::WUSR)?);
            std::io::copy(&mut from, &mut to)?;
            copy_attributes(&from, &to)
        }
        FileType::Symlink => {
            symlinkat(readlinkat(source, name, Vec::new())?.as_c_str(), target, name)?;
            let (uid, gid) = owner(&stat);
            Ok(chownat(target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
        }
        // Devices, sockets and pipes of an image mean nothing in a volume.
        _ => Ok(()),
    }
}

fn copy_attributes(source: &File, target: &File) -> Result<()> {
    let stat = fstat(source)?;
    let (uid, gid) = owner(&stat);
    fchown(target, uid, gid)?;
    fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_user_attributes(source, target);
    Ok(())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

/// Extended attributes are a convenience: what cannot be copied is left out.
fn copy_user_attributes(source: &File, target: &File) {
    let mut names = vec![0u8; 4096];
    let Ok(length) = flistxattr(source.as_fd(), names.as_mut_slice()) else { return };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0u8; 64 * 1024];
        if let Ok(length) = fgetxattr(source.as_fd(), name, value.as_mut_slice()) {
            let _ = fsetxattr(target.as_fd(), name, &value[..length], XattrFlags::empty());
        }
    }
}
