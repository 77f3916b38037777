//! The task's disk: an ext4 file or block device for writable layers and volumes.
//!
//! Its files have the host's ids, those of the task's user namespace: overlayfs cannot make its
//! working directory on a mount whose ids are shifted, since the mounter has no id there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::OFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::sandbox::open_on_host;
use crate::sys;

/// Where the disk is mounted.
pub const DISK: &str = "/disk";

const LOOP_MAJOR: u64 = 7;

/// A mounted disk. It is unmounted with the sandbox's mount namespace.
pub struct Scratch {
    /// Device and inode of the file: it may be named in several ways.
    identity: (u64, u64),
}

impl Scratch {
    /// Mounts the disk at [`DISK`]. `source` is a path of the host.
    ///
    /// # Errors
    /// The source is no ext4, or no loop device is free.
    pub fn mount(source: &Path) -> Result<Self> {
        let file = File::from(open_on_host(source, OFlags::RDWR)?);
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        // Mounting opens the device again; until then these handles keep it.
        let (device, _attached) = if kind.is_block_device() {
            (PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), None)
        } else if kind.is_file() {
            let (path, device) = attach(&file)?;
            (path, Some(device))
        } else {
            bail!("the task's disk {} is neither a file nor a block device", source.display());
        };
        mount_disk(&device, source)?;
        Ok(Self { identity: (metadata.dev(), metadata.ino()) })
    }

    /// Mounts a block device of this machine at [`DISK`].
    ///
    /// # Errors
    /// The device holds no ext4.
    pub fn mount_device(source: &Path) -> Result<Self> {
        mount_disk(source, source)?;
        let metadata = fs::metadata(source)?;
        Ok(Self { identity: (metadata.dev(), metadata.ino()) })
    }

    /// Whether this is the disk that a path of the host names.
    ///
    /// # Errors
    /// There is nothing at the path.
    pub fn is(&self, source: &Path) -> Result<bool> {
        let metadata = File::from(open_on_host(source, OFlags::PATH)?).metadata()?;
        Ok(self.identity == (metadata.dev(), metadata.ino()))
    }
}

/// `source` is the device by the name that people know.
fn mount_disk(device: &Path, source: &Path) -> Result<()> {
    let fs = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", device)?;
    // The disk lives as long as the task: nothing on it must survive a power failure.
    fsconfig_set_flag(fs.as_fd(), "nobarrier")?;
    fsconfig_set_flag(fs.as_fd(), "discard")?;
    fsconfig_create(fs.as_fd()).with_context(|| format!("mount the task's disk {}", source.display()))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let mounted = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach_at(&mounted, DISK)?;
    // Containers bring their volumes from below, as their own root.
    fs::set_permissions(DISK, Permissions::from_mode(0o711))?;
    for dir in ["upper", "work", "volume", "etc"] {
        let path = format!("{DISK}/{dir}");
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// Attaches a file to a free loop device; it is detached at the last close or unmount.
fn attach(backing: &File) -> Result<(PathBuf, File)> {
    let control_path = "/dev/.loop-control";
    if !Path::new(control_path).exists() {
        mknod(control_path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(10, 237))?;
    }
    let control =
        OpenOptions::new().read(true).write(true).open(control_path).context("open loop-control")?;
    // Another supervisor may take the free device between the two calls.
    for _ in 0..64 {
        let number = sys::loop_get_free(&control).context("find a free loop device")?;
        let path = PathBuf::from(format!("/dev/.loop{number}"));
        if !path.exists() {
            mknod(
                &path,
                SFlag::S_IFBLK,
                Mode::from_bits_truncate(0o600),
                makedev(LOOP_MAJOR, number.into()),
            )?;
        }
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        match sys::loop_configure(&device, backing) {
            Ok(()) => return Ok((path, device)),
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {}
            Err(error) => return Err(error).context("attach the disk to a loop device"),
        }
    }
    bail!("no loop device could be had: others were faster 64 times")
}

/// A detached copy of a directory of the host whose ids are shifted into `userns`.
///
/// # Errors
/// There is no such directory, or its file system does not support id-mapped mounts.
pub fn shifted_clone(path: &Path, userns: &OwnedFd) -> Result<OwnedFd> {
    let dir = open_on_host(path, OFlags::PATH | OFlags::DIRECTORY)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&dir, "", flags).with_context(|| format!("clone {}", path.display()))?;
    sys::mount_setattr(&tree, sys::ATTR_IDMAP | sys::ATTR_NODEV, Some(userns)).with_context(|| {
        format!("shift the ids of {}: kernel or file system lacks id-mapped mounts", path.display())
    })?;
    Ok(tree)
}

/// Attaches a detached mount at a path.
pub fn attach_at(tree: &OwnedFd, path: &str) -> Result<()> {
    move_mount(tree.as_fd(), "", rustix::fs::CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("attach a mount at {path}"))
}
