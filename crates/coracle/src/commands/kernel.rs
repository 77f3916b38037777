//! `coracle kernel`: the kernels that microVMs run. They are read from Debian packages, which are
//! never installed over the host's own. Needs no server; a running one uses a new kernel from its
//! next start on.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::guest::{DEBIAN_META_PACKAGE, IN_STATE, Kernel, KernelStore};
use anyhow::{Context as _, bail};
use serde_json::json;

use super::{Context, Output, print};

#[derive(clap::Subcommand)]
pub enum KernelCommand {
    /// Take a kernel from a Debian package; without a file, the newest cloud kernel that apt knows
    Install {
        /// A package with a kernel in it: linux-image-RELEASE-cloud-amd64_VERSION_amd64.deb
        #[arg(value_name = "FILE.deb")]
        package: Option<PathBuf>,
    },
    /// List the kernels; new tasks run the first
    #[command(visible_alias = "ls")]
    List,
    /// Remove a kernel
    #[command(visible_alias = "rm")]
    Remove {
        /// As the list names it, or its release.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Where a server with this state directory has its guest kernels.
pub fn store(state_dir: &Path) -> KernelStore {
    KernelStore::new(state_dir.join(IN_STATE))
}

pub fn main(context: &Context, command: &KernelCommand) -> anyhow::Result<()> {
    let store = store(&context.state_dir);
    if let KernelCommand::Install { .. } = command {
        // As a server makes it.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&context.state_dir);
        made.with_context(|| format!("cannot make the state directory {}", context.state_dir.display()))?;
    }
    match command {
        KernelCommand::Install { package: Some(package) } => installed(context, &store.install(package)?),
        KernelCommand::Install { package: None } => {
            let downloads = Downloads::make()?;
            let package = downloads.newest_kernel()?;
            installed(context, &store.install(&package)?)
        }
        KernelCommand::List => list(context, &store),
        KernelCommand::Remove { name } => Ok(store.remove(name)?),
    }
}

fn installed(context: &Context, kernel: &Kernel) -> anyhow::Result<()> {
    match context.output {
        Output::Json => print::json(&document(kernel)),
        Output::Text => print::line(kernel.name()),
    }
}

fn document(kernel: &Kernel) -> serde_json::Value {
    let about = kernel.description();
    json!({
        "name": kernel.name(), "release": about.release, "package": about.package, "version": about.version,
        "digest": about.digest, "vmlinux": kernel.vmlinux(), "modules": about.modules,
    })
}

fn list(context: &Context, store: &KernelStore) -> anyhow::Result<()> {
    let kernels = store.list()?;
    match context.output {
        Output::Json => print::json(&kernels.iter().map(document).collect::<Vec<_>>()),
        Output::Text => {
            let row = |kernel: &Kernel| {
                let about = kernel.description();
                let modules = about.modules.len().to_string();
                vec![kernel.name(), about.release.clone(), about.version.clone(), modules]
            };
            let rows =
                kernels.iter().map(row).map(|row| row.iter().map(|cell| print::printable(cell)).collect());
            print::table(&["NAME", "RELEASE", "VERSION", "MODULES"], rows.collect())
        }
    }
}

/// A directory for a download, removed at the end.
struct Downloads(PathBuf);

impl Downloads {
    fn make() -> anyhow::Result<Self> {
        let name = format!("coracle-kernel-{}", std::process::id());
        // Not below the state directory, which none but root may enter: apt downloads as a user of its own.
        let dir = std::env::temp_dir().join(name);
        let make = || {
            std::fs::create_dir(&dir)?;
            std::fs::set_permissions(&dir, Permissions::from_mode(0o755))
        };
        make().with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Downloads the package that the meta package depends on.
    fn newest_kernel(&self) -> anyhow::Result<PathBuf> {
        let depends = apt(Command::new("apt-cache").args(["depends", "--important", DEBIAN_META_PACKAGE]))?;
        let package = kernel_package(&depends).with_context(|| {
            format!("apt does not know {DEBIAN_META_PACKAGE}; run apt-get update, or name a package's file")
        })?;
        print::note(format_args!("downloading {package}"));
        apt(Command::new("apt-get").args(["download", "-qq", package]).current_dir(&self.0))?;
        let mut files = std::fs::read_dir(&self.0).context("cannot read the download")?.flatten();
        let file = files.find(|file| file.path().extension().is_some_and(|extension| extension == "deb"));
        Ok(file.with_context(|| format!("apt-get did not download {package}"))?.path())
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        // What stays in the temporary directory does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The first dependency that holds a kernel, in what `apt-cache depends` prints.
fn kernel_package(depends: &str) -> Option<&str> {
    depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).find(|name| {
        name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

fn apt(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.env("LC_ALL", "C").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "this machine has no {program}; take the package that Debian's {DEBIAN_META_PACKAGE} depends on to it, and \
             name the file: coracle kernel install linux-image-…-cloud-amd64_…_amd64.deb"
        ),
        output => output.with_context(|| format!("cannot run {program}"))?,
    };
    if !output.status.success() {
        bail!("{program} failed: {}", print::printable(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_from_other_dependencies() {
        let text =
            "linux-image-cloud-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_package(text), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(kernel_package("x\n  Depends: linux-image-amd64\n"), None);
    }
}
