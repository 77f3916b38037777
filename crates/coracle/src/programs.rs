//! The programs that come with this binary: supervisor, microVM monitor, jailer.
//!
//! A release carries them inside (`build.rs`); a development build finds them beside the executable.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A program of ours that runs on its own.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    Supervisor,
    Monitor,
    Jailer,
}

#[cfg(coracle_embedded)]
const fn embedded(program: Program) -> Option<&'static [u8]> {
    Some(match program {
        Program::Supervisor => include_bytes!(env!("CORACLE_SUPERVISOR_BIN")),
        Program::Monitor => include_bytes!(env!("CORACLE_VMM_BIN")),
        Program::Jailer => include_bytes!(env!("CORACLE_JAILER_BIN")),
    })
}
#[cfg(not(coracle_embedded))]
const fn embedded(_: Program) -> Option<&'static [u8]> {
    None
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "coracle-supervisor",
            Self::Monitor => "coracle-vmm",
            Self::Jailer => "coracle-jailer",
        }
    }

    /// The program's path; an embedded one is written to `dir` under a name that tells its content, so
    /// that running ones of an older version keep their file.
    pub fn provide(self, dir: &Path) -> anyhow::Result<PathBuf> {
        match embedded(self) {
            Some(content) => self.extract(dir, content),
            None => self.beside_the_executable(),
        }
    }

    fn extract(self, dir: &Path, content: &[u8]) -> anyhow::Result<PathBuf> {
        let digest = ring::digest::digest(&ring::digest::SHA256, content);
        let path = dir.join(format!("{}-{}", self.name(), hex::encode(&digest.as_ref()[..8])));
        if std::fs::read(&path).is_ok_and(|present| present == content) {
            return Ok(path);
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let new = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&new)?;
            file.write_all(content)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
            std::fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn beside_the_executable(self) -> anyhow::Result<PathBuf> {
        let executable = std::env::current_exe().context("cannot find the running executable")?;
        let path = executable.with_file_name(self.name());
        if !path.is_file() {
            bail!(
                "the program {} is missing: this build expects it at {}; run `make build`",
                self.name(),
                path.display()
            );
        }
        Ok(path)
    }
}
