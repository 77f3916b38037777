//! The supervisor program that comes with this binary.
//!
//! A release carries it inside (`build.rs`, `CORACLE_SUPERVISOR_BIN`); a development build finds it
//! beside the executable.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

#[cfg(coracle_embedded_supervisor)]
const EMBEDDED: Option<&[u8]> = Some(include_bytes!(env!("CORACLE_SUPERVISOR_BIN")));
#[cfg(not(coracle_embedded_supervisor))]
const EMBEDDED: Option<&[u8]> = None;

const NAME: &str = "coracle-supervisor";

/// The program's path; an embedded one is written to `dir` under a name that tells its content, so
/// that supervisors of an older version keep their file.
pub fn provide(dir: &Path) -> anyhow::Result<PathBuf> {
    match EMBEDDED {
        Some(program) => extract(dir, program),
        None => beside_the_executable(),
    }
}

fn extract(dir: &Path, program: &[u8]) -> anyhow::Result<PathBuf> {
    let digest = ring::digest::digest(&ring::digest::SHA256, program);
    let path = dir.join(format!("{NAME}-{}", hex::encode(&digest.as_ref()[..8])));
    if std::fs::read(&path).is_ok_and(|present| present == program) {
        return Ok(path);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&new)?;
        file.write_all(program)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&new, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn beside_the_executable() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot find the running executable")?;
    let path = executable.with_file_name(NAME);
    if !path.is_file() {
        bail!(
            "the supervisor program is missing: this build expects it at {}; run `make build`",
            path.display()
        );
    }
    Ok(path)
}
