//! What a kernel package's files become: a directory that is made whole before it is published.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::decompress::decompress;
use super::package::Sink;
use super::store::{MODULE_MAX, MODULES, VMLINUX, write_durably};
use super::{GuestError, bzimage, module};

const VMLINUZ_MAX: u64 = 512 << 20;
/// All modules of a package, unpacked.
const MODULES_MAX: u64 = 2 << 30;

/// As in Debian: letters, digits and a few marks, not hidden.
pub(super) fn is_release(release: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    !release.is_empty() && release.len() <= 64 && !release.starts_with('.') && release.chars().all(is_safe)
}

/// A directory that goes away unless it is published.
pub(super) struct Staging(pub(super) PathBuf);

impl Staging {
    pub(super) fn make(dir: PathBuf) -> Result<Self, GuestError> {
        fs::create_dir_all(dir.join(MODULES)).map_err(GuestError::io("make", &dir))?;
        Ok(Self(dir))
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), GuestError> {
        let path = self.0.join(name);
        write_durably(&path, content).map_err(GuestError::io("write", &path))
    }

    pub(super) fn keep_only(&self, modules: &[String]) -> Result<(), GuestError> {
        let dir = self.0.join(MODULES);
        for entry in fs::read_dir(&dir).map_err(GuestError::io("read", &dir))?.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| modules.iter().any(|module| module == name)) {
                fs::remove_file(entry.path()).map_err(GuestError::io("remove", &entry.path()))?;
            }
        }
        for file in modules {
            let path = dir.join(file);
            File::open(&path).and_then(|file| file.sync_all()).map_err(GuestError::io("write", &path))?;
        }
        Ok(())
    }

    pub(super) fn publish(self, dir: &Path) -> Result<(), GuestError> {
        for path in [&self.0.join(MODULES), &self.0] {
            sync_directory(path)?;
        }
        fs::rename(&self.0, dir).map_err(GuestError::io("make", dir))?;
        dir.parent().map_or(Ok(()), sync_directory)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After publishing there is none; what cannot be removed the next installation removes.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sync_directory(path: &Path) -> Result<(), GuestError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(GuestError::io("write", path))
}

/// What a package's files become.
pub(super) struct Parts<'a> {
    staging: &'a Staging,
    pub(super) release: Option<String>,
    /// By module name: the modules that it needs.
    pub(super) needs: BTreeMap<String, Vec<String>>,
    /// By module name: its file name.
    pub(super) files: BTreeMap<String, String>,
    modules_bytes: u64,
}

impl<'a> Parts<'a> {
    pub(super) const fn new(staging: &'a Staging) -> Self {
        Self { staging, release: None, needs: BTreeMap::new(), files: BTreeMap::new(), modules_bytes: 0 }
    }

    /// The module file's name without its compression, if the path is one's.
    fn module_file(path: &str) -> Option<&str> {
        let path = path.strip_prefix("usr/").unwrap_or(path);
        let (_, file) = path.strip_prefix("lib/modules/")?.rsplit_once('/')?;
        let file = [".xz", ".zst", ".gz"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
        (file.ends_with(".ko") && is_release(file)).then_some(file)
    }

    fn module(&mut self, file: &str, content: &[u8]) -> Result<(), GuestError> {
        let refuse = |why: String| GuestError::Package { path: PathBuf::new(), why };
        let mut unpacked = Vec::new();
        decompress(content)
            .and_then(|reader| reader.take(MODULE_MAX + 1).read_to_end(&mut unpacked))
            .map_err(|error| refuse(format!("the module {file} cannot be unpacked: {error}")))?;
        self.modules_bytes += unpacked.len() as u64;
        if unpacked.len() as u64 > MODULE_MAX || self.modules_bytes > MODULES_MAX {
            return Err(refuse(format!("its modules are too large ({file})")));
        }
        let needs = module::needs(&unpacked).map_err(|why| refuse(format!("the module {file} is {why}")))?;
        let path = self.staging.0.join(MODULES).join(file);
        // Made durable if it is kept.
        fs::write(&path, &unpacked).map_err(GuestError::io("write", &path))?;
        let name = module::name_of_file(file);
        self.needs.insert(name.clone(), needs);
        self.files.insert(name, file.to_owned());
        Ok(())
    }
}

impl Sink for Parts<'_> {
    fn wants(&mut self, path: &str) -> Option<u64> {
        if path.starts_with("boot/vmlinuz-") {
            return Some(VMLINUZ_MAX);
        }
        Self::module_file(path).map(|_| MODULE_MAX)
    }

    fn file(&mut self, path: &str, content: Vec<u8>) -> Result<(), GuestError> {
        if let Some(file) = Self::module_file(path) {
            return self.module(file, &content);
        }
        let refuse = |why: String| GuestError::Package { path: PathBuf::new(), why };
        let release = path.strip_prefix("boot/vmlinuz-").unwrap_or_default();
        if !is_release(release) || self.release.is_some() {
            return Err(refuse("it does not hold exactly one boot/vmlinuz-RELEASE".into()));
        }
        self.release = Some(release.to_owned());
        self.staging.write(VMLINUX, &bzimage::vmlinux(content).map_err(refuse)?)
    }
}
