//! Putting a container's root file system together: image layers below, the task's disk above.
//!
//! Layers are stored with the ids of the image (0 to 65535). Each is mounted with its ids shifted
//! into the task's user namespace, so that one copy on the host serves all tasks and no task can
//! touch it with the host's ids. What a task writes is on its disk, with the ids of its namespace.
//! In a microVM each layer is an EROFS file system on a disk of the machine's, and ids are as they are.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::sandbox::Layer;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat2};

use crate::sandbox::{Place, Sandbox};
use crate::scratch::{DISK, attach_at, shifted_clone};

/// Overlayfs takes 500 layers, the page that holds its options fewer. Docker's limit is 127.
const MAX_LAYERS: usize = 127;

/// Mounts the root file system of the container known as `key` and returns where. `has_devices`:
/// device nodes in it can be opened.
///
/// # Errors
/// A layer is missing, there are more than 127, or the kernel cannot shift ids of the layers'
/// file system or put overlayfs on top (Linux 5.19 can).
pub fn assemble(key: &str, layers: &[Layer], sandbox: &Sandbox, has_devices: bool) -> Result<PathBuf> {
    if layers.is_empty() {
        bail!("the image has no layers");
    }
    if layers.len() > MAX_LAYERS {
        bail!("the image has {} layers; at most {MAX_LAYERS} are supported", layers.len());
    }
    for dir in ["upper", "work"] {
        let path = format!("{DISK}/{dir}/{key}");
        fs::create_dir(&path).context("no room on the task's disk")?;
        chown(&path, Some(sandbox.uid_base), Some(sandbox.uid_base))?;
    }
    let mut attached = Vec::with_capacity(layers.len());
    let flags = if has_devices { MsFlags::empty() } else { MsFlags::MS_NODEV };
    let result = attach_layers(layers, sandbox, flags, &mut attached)
        .and_then(|()| mount_overlay(key, &attached, flags));
    // The overlay holds its own references; these only made the layers nameable.
    for path in &attached {
        let _ = umount2(path.as_str(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(path);
    }
    result
}

fn attach_layers(
    layers: &[Layer],
    sandbox: &Sandbox,
    flags: MsFlags,
    attached: &mut Vec<String>,
) -> Result<()> {
    for (index, layer) in layers.iter().enumerate() {
        let path = format!("/layer/{index}");
        fs::create_dir_all(&path)?;
        match (&sandbox.place, layer) {
            (Place::Container { userns, .. }, Layer::Directory { path: layer }) => {
                attach_at(&shifted_clone(layer, userns)?, &path)?;
            }
            (Place::Container { .. }, Layer::Extent { .. }) => {
                bail!("a container sandbox has no disk of layers")
            }
            (Place::Microvm(guest), layer) => {
                let device = guest.layer_device(layer)?;
                let flags = flags | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
                mount(Some(&device), path.as_str(), Some("erofs"), flags, None::<&str>)
                    .with_context(|| format!("mount the layer {}", device.display()))?;
            }
        }
        attached.push(path);
    }
    Ok(())
}

fn mount_overlay(key: &str, attached: &[String], flags: MsFlags) -> Result<PathBuf> {
    let target = PathBuf::from(format!("/rootfs/{key}"));
    fs::create_dir_all(&target)?;
    let lower = attached.iter().rev().map(String::as_str).collect::<Vec<_>>().join(":");
    // An image must not steer overlayfs by attributes of its own (redirects, metadata-only
    // copies); and as the disk dies with the task, nothing needs to be flushed (volatile).
    let options = format!(
        "lowerdir={lower},upperdir={DISK}/upper/{key},workdir={DISK}/work/{key},\
         redirect_dir=nofollow,metacopy=off,index=off,xino=off,volatile"
    );
    mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str()))
        .context("mount the root file system (overlayfs on id-mapped layers needs Linux 5.19)")?;
    Ok(target)
}

/// Opens a path of the image as the container would resolve it: symbolic links cannot leave the
/// root. Never blocks, whatever the path names.
pub fn open_in_root(rootfs: &Path, path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let never_waits =
        if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
    let flags = flags | OFlags::CLOEXEC | never_waits;
    openat2(&root, relative, flags, Mode::empty(), resolve).map(File::from)
}

/// Makes a directory of the container's file system, and its parents, for the container's root.
///
/// # Errors
/// A part of the path exists and is not a directory, or the disk is full; the text is Docker's.
pub fn make_dir_in_root(rootfs: &Path, path: &Path, uid_base: u32) -> Result<()> {
    make_dirs(rootfs, path, uid_base)
        .map_err(|errno| anyhow::anyhow!("mkdir {}: {}", path.display(), describe(errno)))
}

fn make_dirs(rootfs: &Path, path: &Path, uid_base: u32) -> rustix::io::Result<()> {
    let owner = (Some(Uid::from_raw(uid_base)), Some(Gid::from_raw(uid_base)));
    let mut made = PathBuf::from("/");
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        let parent = open_in_root(rootfs, &made, OFlags::PATH | OFlags::DIRECTORY)?;
        made.push(name);
        match open_in_root(rootfs, &made, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => {
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// An error as Go, and thus Docker, words it.
pub fn describe(errno: rustix::io::Errno) -> String {
    match errno {
        rustix::io::Errno::NOENT => "no such file or directory".into(),
        rustix::io::Errno::NOTDIR => "not a directory".into(),
        rustix::io::Errno::ACCESS => "permission denied".into(),
        rustix::io::Errno::ISDIR => "is a directory".into(),
        rustix::io::Errno::NOSPC => "no space left on device".into(),
        rustix::io::Errno::NOEXEC => "exec format error".into(),
        rustix::io::Errno::TOOBIG => "argument list too long".into(),
        rustix::io::Errno::LOOP => "too many levels of symbolic links".into(),
        other => {
            let text = std::io::Error::from(other).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    }
}
