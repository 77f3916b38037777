//! Device nodes that a container has beside the usual ones: those that its definition names, and all
//! of them when it is privileged. Only of a microVM's own kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::spec::{ContainerSpec, DeviceSpec};
use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

const DEV: &str = "/dev";
/// What a container has of its own below `/dev`.
const OWN: &[&str] = &["console", "fd", "init", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"];

/// A device and what a container may do with it.
#[derive(Clone, Debug)]
pub struct Device {
    pub node: LinuxDevice,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

/// The devices of a container, by their place in it.
///
/// # Errors
/// The kernel is the host's, or has no such device. The text is Docker's.
pub fn of(definition: &ContainerSpec, is_microvm: bool) -> Result<Vec<Device>> {
    if !is_microvm && (definition.privileged || !definition.linux.devices.is_empty()) {
        bail!("privileged containers and devices need a kernel of the task's own: isolation microvm");
    }
    let mut devices = BTreeMap::new();
    if definition.privileged {
        collect(Path::new(DEV), &mut devices);
    }
    for wanted in &definition.linux.devices {
        add(wanted, &mut devices)?;
    }
    Ok(devices.into_values().collect())
}

fn add(wanted: &DeviceSpec, devices: &mut BTreeMap<PathBuf, Device>) -> Result<()> {
    let source = below_dev(&wanted.host_path)?;
    let target = below_dev(&wanted.container_path)?;
    let node = node(&source, target.clone()).with_context(|| {
        format!("error gathering device information while adding custom device {:?}", wanted.host_path)
    })?;
    let DeviceSpec { read, write, mknod, .. } = *wanted;
    devices.insert(target, Device { node, read, write, mknod });
    Ok(())
}

/// A path of a device: below `/dev`, and not one that a container has of its own.
fn below_dev(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let name = path.strip_prefix(DEV).ok().and_then(|below| below.iter().next());
    match name.and_then(|name| name.to_str()) {
        Some(name) if is_plain && !OWN.contains(&name) => Ok(path.to_owned()),
        _ => bail!("{} is no device's path", path.display()),
    }
}

/// All device nodes below a directory. What goes away meanwhile is left out.
fn collect(dir: &Path, devices: &mut BTreeMap<PathBuf, Device>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_own =
            dir == Path::new(DEV) && entry.file_name().to_str().is_none_or(|name| OWN.contains(&name));
        if is_own {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, devices);
        } else if let Ok(node) = node(&path, path.clone()) {
            devices.insert(path, Device { node, read: true, write: true, mknod: true });
        }
    }
}

fn node(source: &Path, target: PathBuf) -> Result<LinuxDevice> {
    let metadata = fs::symlink_metadata(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!("no such file or directory"),
        _ => error.into(),
    })?;
    let kind = if metadata.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if metadata.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        bail!("not a device node");
    };
    Ok(LinuxDeviceBuilder::default()
        .path(target)
        .typ(kind)
        .major(i64::try_from(major(metadata.rdev()))?)
        .minor(i64::try_from(minor(metadata.rdev()))?)
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::container;

    fn device(host_path: &str, container_path: &str) -> DeviceSpec {
        let (host_path, container_path) = (host_path.to_owned(), container_path.to_owned());
        DeviceSpec { host_path, container_path, read: true, write: true, mknod: false }
    }

    #[test]
    fn devices_are_of_a_microvm() {
        let mut definition = container().spec;
        assert!(of(&definition, false).unwrap().is_empty() && of(&definition, true).unwrap().is_empty());
        definition.linux.devices = vec![device("/dev/zero", "/dev/nothing")];
        let error = of(&definition, false).unwrap_err().to_string();
        assert!(error.contains("isolation microvm"), "{error}");
        let devices = of(&definition, true).unwrap();
        let [zero] = &devices[..] else { panic!("{devices:?}") };
        assert_eq!((zero.node.major(), zero.node.minor()), (1, 5));
        assert_eq!(zero.node.path(), Path::new("/dev/nothing"));
        definition.linux.devices.clear();
        definition.privileged = true;
        assert!(of(&definition, false).is_err());
        let all = of(&definition, true).unwrap();
        assert!(all.iter().any(|one| one.node.path() == Path::new("/dev/urandom")));
        assert!(!all.iter().any(|one| one.node.path().starts_with("/dev/pts")));
    }

    #[test]
    fn paths_of_devices() {
        let mut definition = container().spec;
        for (host, container) in [
            ("/etc/passwd", "/dev/x"),
            ("/dev/../etc/passwd", "/dev/x"),
            ("/dev/zero", "/etc/x"),
            ("/dev/zero", "/dev/shm/x"),
            ("/dev/zero", "/dev"),
            ("/dev/no-such-device", "/dev/x"),
            ("/dev/fd/0", "/dev/x"),
        ] {
            definition.linux.devices = vec![device(host, container)];
            assert!(of(&definition, true).is_err(), "{host} {container}");
        }
    }
}
