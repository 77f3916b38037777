//! The guest kernels of this host: a directory each, named after release and package, with
//!
//! ```text
//! kernel.json         what it is (KernelDescription)
//! vmlinux             the ELF file
//! modules/*.ko        unpacked
//! initramfs-<digest>  made for a supervisor, when it was first wanted
//! ```
//!
//! Made beside and renamed, so that each is whole; whoever changes the directory holds its lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, Digest, SHA256, digest};
use serde::{Deserialize, Serialize};

use super::install::{Parts, Staging};
use super::module::WANTED_MODULES;
use super::package::{self, PACKAGE_MAX, PackageError};
use super::{GuestError, initramfs, module, version};

const DESCRIPTION: &str = "kernel.json";
pub(super) const VMLINUX: &str = "vmlinux";
pub(super) const MODULES: &str = "modules";
const LOCK: &str = "lock";
/// Directories being made or removed begin with it.
const UNFINISHED: &str = ".new-";

pub(super) const MODULE_MAX: u64 = 64 << 20;
const SUPERVISOR_MAX: u64 = 256 << 20;

/// What is known of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelDescription {
    /// As `uname -r` prints it.
    pub release: String,
    /// The Debian package it is from.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// SHA-256 of the package file, in hexadecimal.
    pub digest: String,
    /// Its modules' file names, in the order of loading. None that the kernel has built in.
    pub modules: Vec<String>,
}

/// A kernel that was installed.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    description: KernelDescription,
}

/// The directory of guest kernels.
#[derive(Clone, Debug)]
pub struct KernelStore {
    dir: PathBuf,
}

impl KernelStore {
    /// Makes `dir` when the first kernel is installed.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Reads a Debian kernel package (`linux-image-*.deb`) and keeps what guests need of it. What is
    /// there already is given back. Blocks for seconds.
    ///
    /// # Errors
    /// The file is no such package, or the directory cannot be written.
    pub fn install(&self, package: &Path) -> Result<Kernel, GuestError> {
        let _lock = self.lock()?;
        self.remove_unfinished()?;
        let mut file = File::open(package).map_err(GuestError::io("open", package))?;
        let refuse = |why: String| GuestError::Package { path: package.to_owned(), why };
        let metadata = file.metadata().map_err(GuestError::io("read", package))?;
        if !metadata.is_file() || metadata.len() > PACKAGE_MAX {
            return Err(refuse(format!("it is not a file of at most {} MiB", PACKAGE_MAX >> 20)));
        }
        let digest = hex::encode(digest_of(&mut file).map_err(GuestError::io("read", package))?);
        if let Some(present) = self.list()?.into_iter().find(|kernel| kernel.description.digest == digest) {
            return Ok(present);
        }
        file.rewind().map_err(GuestError::io("read", package))?;
        let staging = Staging::make(self.dir.join(format!("{UNFINISHED}{}", &digest[..12])))?;
        let mut parts = Parts::new(&staging);
        let control = package::read(file, &mut parts).map_err(|error| match error {
            PackageError::Malformed(why) => refuse(why),
            PackageError::Sink(GuestError::Package { why, .. }) => refuse(why),
            PackageError::Sink(error) => error,
        })?;
        let Parts { release, needs, files, .. } = parts;
        if control.architecture != "amd64" {
            return Err(refuse(format!("it is for {}, not for amd64", control.architecture.escape_debug())));
        }
        let release = release.ok_or_else(|| {
            refuse(
                "there is no boot/vmlinuz-* in it; meta packages have none: take the one it depends on"
                    .into(),
            )
        })?;
        let order = module::load_order(&needs, &WANTED_MODULES);
        let modules: Vec<String> = order.iter().filter_map(|name| files.get(name).cloned()).collect();
        staging.keep_only(&modules)?;
        let description = KernelDescription {
            release,
            package: control.package,
            version: control.version,
            digest,
            modules,
        };
        let json = serde_json::to_vec_pretty(&description).map_err(io::Error::from);
        let path = staging.0.join(DESCRIPTION);
        json.and_then(|json| write_durably(&path, &json)).map_err(GuestError::io("write", &path))?;
        let dir = self.dir.join(directory_name(&description));
        staging.publish(&dir)?;
        Ok(Kernel { dir, description })
    }

    /// All kernels, the newest first. A directory that is not whole is not one of them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kernel>, GuestError> {
        let mut kernels = Vec::new();
        for dir in self.directories()? {
            let Ok(bytes) = fs::read(dir.join(DESCRIPTION)) else { continue };
            match serde_json::from_slice::<KernelDescription>(&bytes) {
                Ok(description) => kernels.push(Kernel { dir, description }),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a guest kernel's description is damaged")
                }
            }
        }
        kernels.sort_by(|a, b| {
            let by_version = version::compare(&b.description.version, &a.description.version);
            by_version.then_with(|| b.description.digest.cmp(&a.description.digest))
        });
        Ok(kernels)
    }

    /// The kernel for new machines.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn newest(&self) -> Result<Option<Kernel>, GuestError> {
        Ok(self.list()?.into_iter().next())
    }

    /// Removes a kernel by its name or release; of several with that release, all. Machines that run
    /// have no need of it.
    ///
    /// # Errors
    /// There is none, or the directory cannot be changed.
    pub fn remove(&self, name: &str) -> Result<(), GuestError> {
        let _lock = self.lock()?;
        let named = |kernel: &Kernel| kernel.name() == name || kernel.description.release == name;
        let found: Vec<_> = self.list()?.into_iter().filter(named).collect();
        if found.is_empty() {
            return Err(GuestError::Unknown(name.to_owned()));
        }
        found.iter().try_for_each(|kernel| self.remove_directory(&kernel.dir))
    }

    /// Removes all kernels but this one, which new machines get, and what an installation left
    /// unfinished. Gives back what was removed.
    ///
    /// # Errors
    /// The directory cannot be changed.
    pub fn remove_others(&self, used: &Kernel) -> Result<Vec<Kernel>, GuestError> {
        let _lock = self.lock()?;
        self.remove_unfinished()?;
        let others: Vec<_> = self.list()?.into_iter().filter(|kernel| kernel.dir != used.dir).collect();
        for kernel in &others {
            self.remove_directory(&kernel.dir)?;
        }
        Ok(others)
    }

    /// One installation at a time; the kernel drops the lock with the process.
    fn lock(&self) -> Result<File, GuestError> {
        fs::create_dir_all(&self.dir).map_err(GuestError::io("make", &self.dir))?;
        let path = self.dir.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(GuestError::io("open", &path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| GuestError::io("lock", &path)(errno.into()))?;
        Ok(lock)
    }

    fn directories(&self) -> Result<Vec<PathBuf>, GuestError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(GuestError::io("read", &self.dir))?,
        };
        let is_finished =
            |entry: &fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
        Ok(entries.flatten().filter(is_finished).map(|entry| entry.path()).collect())
    }

    /// Under another name first: a directory is either whole or not there.
    fn remove_directory(&self, dir: &Path) -> Result<(), GuestError> {
        let doomed = self.dir.join(format!("{UNFINISHED}removed"));
        fs::rename(dir, &doomed).map_err(GuestError::io("remove", dir))?;
        fs::remove_dir_all(&doomed).map_err(GuestError::io("remove", &doomed))
    }

    fn remove_unfinished(&self) -> Result<(), GuestError> {
        let entries = fs::read_dir(&self.dir).map_err(GuestError::io("read", &self.dir))?;
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(GuestError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

impl Kernel {
    #[must_use]
    pub fn description(&self) -> &KernelDescription {
        &self.description
    }

    /// Its directory's name.
    #[must_use]
    pub fn name(&self) -> String {
        directory_name(&self.description)
    }

    /// The ELF file.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join(VMLINUX)
    }

    /// The initial file system with this program as `/init` and the kernel's modules; made when it is
    /// not there. Those of other supervisors are removed. Blocks.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn initramfs(&self, supervisor: &Path) -> Result<PathBuf, GuestError> {
        let program = read_bounded(supervisor, SUPERVISOR_MAX)?;
        let name = format!("initramfs-{}", hex::encode(&digest(&SHA256, &program).as_ref()[..12]));
        let path = self.dir.join(&name);
        if path.exists() {
            return Ok(path);
        }
        let mut modules = Vec::with_capacity(self.description.modules.len());
        for file in &self.description.modules {
            modules.push((file.clone(), read_bounded(&self.dir.join(MODULES).join(file), MODULE_MAX)?));
        }
        let new = self.dir.join(format!("{name}.{}", std::process::id()));
        write_durably(&new, &initramfs::build(&program, &modules)).map_err(GuestError::io("write", &new))?;
        fs::rename(&new, &path).map_err(GuestError::io("make", &path))?;
        for entry in fs::read_dir(&self.dir).map_err(GuestError::io("read", &self.dir))?.flatten() {
            let other = entry.file_name();
            if other.as_encoded_bytes().starts_with(b"initramfs-") && other != *name {
                // Another process may do the same.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(path)
    }
}

/// Release and package digest: a security update may keep the release. Both are safe as a file name
/// ([`super::install::is_release`]).
fn directory_name(description: &KernelDescription) -> String {
    format!("{}_{}", description.release, description.digest.get(..12).unwrap_or_default())
}

fn digest_of(file: &mut File) -> io::Result<Digest> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish()),
            length => context.update(&buffer[..length]),
        }
    }
}

fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, GuestError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(path)?.take(most + 1).read_to_end(&mut content)?;
        if content.len() as u64 > most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes")));
        }
        Ok(content)
    };
    read().map_err(GuestError::io("read", path))
}

pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::install::is_release;
    use crate::guest::module::tests::module;
    use crate::guest::package::tests::package;

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(18, 0);
        elf.extend([62, 0, 1, 2, 3]);
        elf
    }

    struct Place {
        dir: tempfile::TempDir,
        store: KernelStore,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = KernelStore::new(dir.path().join("guest"));
            Self { dir, store }
        }

        fn install(&self, package: &[u8]) -> Result<Kernel, GuestError> {
            let path = self.dir.path().join("kernel.deb");
            fs::write(&path, package).unwrap();
            self.store.install(&path)
        }

        /// What is in the store's directory, but its lock.
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.store.dir).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name != LOCK);
            names.sort();
            names
        }
    }

    fn kernel(version: &str) -> Vec<u8> {
        let (blk, ring, virtio, other) =
            (module("virtio_ring,virtio"), module(""), module("virtio_ring"), module(""));
        let files: [(&str, &[u8]); 7] = [
            ("./boot/vmlinuz-6.1.0-9-cloud-amd64", &elf()),
            ("./boot/System.map-6.1.0-9-cloud-amd64", b"map"),
            ("./lib/modules/6.1.0-9-cloud-amd64/kernel/drivers/block/virtio_blk.ko", &blk),
            ("./lib/modules/6.1.0-9-cloud-amd64/kernel/drivers/virtio/virtio_ring.ko", &ring),
            (
                "./usr/lib/modules/6.1.0-9-cloud-amd64/kernel/drivers/virtio/virtio.ko.zst",
                &zstd::encode_all(&virtio[..], 1).unwrap(),
            ),
            ("./lib/modules/6.1.0-9-cloud-amd64/kernel/sound/noise.ko", &other),
            ("./lib/modules/6.1.0-9-cloud-amd64/modules.builtin", b""),
        ];
        package(version, "amd64", &files)
    }

    #[test]
    fn what_guests_need_is_kept() {
        let place = Place::new();
        let kernel_file = kernel("6.1.76-1");
        let installed = place.install(&kernel_file).unwrap();
        let description = installed.description();
        assert_eq!(description.release, "6.1.0-9-cloud-amd64");
        assert_eq!(
            (description.package.as_str(), description.version.as_str()),
            ("linux-image-test", "6.1.76-1")
        );
        assert_eq!(description.modules, ["virtio_ring.ko", "virtio.ko", "virtio_blk.ko"]);
        assert_eq!(fs::read(installed.vmlinux()).unwrap(), elf());
        let mut modules: Vec<_> =
            fs::read_dir(installed.dir.join(MODULES)).unwrap().map(|e| e.unwrap().file_name()).collect();
        modules.sort();
        assert_eq!(modules, ["virtio.ko", "virtio_blk.ko", "virtio_ring.ko"]);
        assert_eq!(fs::read(installed.dir.join("modules/virtio.ko")).unwrap(), module("virtio_ring"));
        assert_eq!(place.names(), [installed.name()]);
        // Again: the same.
        assert_eq!(place.install(&kernel_file).unwrap().name(), installed.name());
        assert_eq!(place.names().len(), 1);
    }

    #[test]
    fn the_newest_is_used_and_others_go() {
        let place = Place::new();
        assert!(place.store.newest().unwrap().is_none());
        for version in ["6.1.99-1", "6.1.100-1", "6.1.76-1"] {
            place.install(&kernel(version)).unwrap();
        }
        let versions: Vec<_> =
            place.store.list().unwrap().into_iter().map(|k| k.description.version).collect();
        assert_eq!(versions, ["6.1.100-1", "6.1.99-1", "6.1.76-1"]);
        let newest = place.store.newest().unwrap().unwrap();
        assert_eq!(place.store.remove_others(&newest).unwrap().len(), 2);
        assert_eq!(place.names(), [newest.name()]);
        place.store.remove("6.1.0-9-cloud-amd64").unwrap();
        assert!(place.names().is_empty());
        assert!(matches!(place.store.remove("6.1"), Err(GuestError::Unknown(_))));
    }

    #[test]
    fn the_initramfs_is_made_once_for_a_supervisor() {
        let place = Place::new();
        let kernel = place.install(&kernel("1")).unwrap();
        let supervisor = place.dir.path().join("supervisor");
        fs::write(&supervisor, "first").unwrap();
        let first = kernel.initramfs(&supervisor).unwrap();
        let bytes = fs::read(&first).unwrap();
        assert!(bytes.starts_with(b"070701") && bytes.windows(5).any(|window| window == b"first"));
        assert_eq!(kernel.initramfs(&supervisor).unwrap(), first);
        fs::write(&supervisor, "other").unwrap();
        let second = kernel.initramfs(&supervisor).unwrap();
        assert!(second != first && second.exists() && !first.exists());
    }

    #[test]
    fn bad_packages_are_refused_and_leave_nothing() {
        let place = Place::new();
        let vmlinuz = "./boot/vmlinuz-6.1";
        let cases: [(&str, Vec<u8>, &str); 8] = [
            ("empty", Vec::new(), "too early"),
            ("not a package", b"#!/bin/sh\nexit 0\n".to_vec(), "not a Debian package"),
            (
                "cut",
                {
                    let k = kernel("1");
                    k[..k.len() / 2].to_vec()
                },
                "too early",
            ),
            ("other architecture", package("1", "arm64", &[(vmlinuz, &elf())]), "arm64"),
            ("no kernel", package("1", "amd64", &[("./usr/share/doc/x", b"text")]), "no boot/vmlinuz"),
            (
                "two kernels",
                package("1", "amd64", &[(vmlinuz, &elf()), ("./boot/vmlinuz-6.2", &elf())]),
                "exactly one",
            ),
            ("no elf", package("1", "amd64", &[(vmlinuz, b"MZ")]), "neither a bzImage"),
            (
                "damaged module",
                package("1", "amd64", &[(vmlinuz, &elf()), ("./lib/modules/6.1/x.ko", b"x")]),
                "not a kernel module",
            ),
        ];
        for (case, package, why) in cases {
            match place.install(&package) {
                Err(GuestError::Package { why: got, path }) => {
                    assert!(got.contains(why), "{case}: {got}");
                    assert!(path.ends_with("kernel.deb"), "{case}");
                }
                other => panic!("{case}: {other:?}"),
            }
            assert!(place.names().is_empty(), "{case}");
        }
        assert!(
            !is_release("a/../b")
                && !is_release("..")
                && !is_release("")
                && is_release("6.1.0-9-cloud-amd64")
        );
        assert!(matches!(place.store.install(place.dir.path()), Err(GuestError::Package { .. })));
        assert!(matches!(place.store.install(Path::new("/nowhere")), Err(GuestError::Io { .. })));
    }

    #[test]
    fn what_was_left_unfinished_is_no_kernel_and_goes() {
        let place = Place::new();
        fs::create_dir_all(place.store.dir.join(".new-abc/modules")).unwrap();
        fs::create_dir_all(place.store.dir.join("6.1_damaged")).unwrap();
        fs::write(place.store.dir.join("6.1_damaged/kernel.json"), "{").unwrap();
        assert!(place.store.list().unwrap().is_empty());
        let kernel = place.install(&kernel("1")).unwrap();
        assert_eq!(place.names(), [kernel.name(), "6.1_damaged".to_owned()]);
    }
}
