//! The identity of one Coracle on a host.
//!
//! Kernel objects (interfaces, network namespaces, nftables tables, cgroups) have names that are
//! global to the host. Every such name carries a short hash of the state directory, so that two
//! Coracles on one machine, or a test beside a production agent, never touch each other's.

use std::fmt;
use std::io;
use std::path::Path;

/// Six lower-case hexadecimal digits derived from the canonical path of the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance(String);

impl Instance {
    /// The instance that keeps its state in `state_dir`, which must exist (its canonical path
    /// counts, so a symbolic link to it names the same instance).
    pub fn of(state_dir: &Path) -> io::Result<Self> {
        let canonical = std::fs::canonicalize(state_dir)?;
        Ok(Self(short_hash(canonical.as_os_str().as_encoded_bytes(), 6)))
    }

    /// The hash itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first `digits` hexadecimal digits of the SHA-256 of `bytes` (at most 64).
pub(crate) fn short_hash(bytes: &[u8], digits: usize) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut text = hex::encode(digest);
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_directory_same_instance() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let other = tempfile::tempdir()?;
        let link = other.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link)?;
        assert_eq!(Instance::of(dir.path())?, Instance::of(&link)?);
        assert_ne!(Instance::of(dir.path())?, Instance::of(other.path())?);
        assert_eq!(Instance::of(dir.path())?.as_str().len(), 6);
        Ok(())
    }
}
