//! What microVMs boot: a kernel from a distribution's package, and an initial file system with the
//! supervisor and the kernel's modules.
//!
//! ```text
//! .deb ── package ──▶ vmlinuz ── bzimage ──▶ vmlinux ─┐
//!            └──────▶ *.ko ───── module ───▶ modules ─┼─▶ store: DIR/<release>_<digest>/
//! supervisor ─────────────────── initramfs ───────────┘
//! ```
//!
//! A package is read, never installed: the host's own boot stays as it is. Everything in one is
//! bounded before it is read.

mod bzimage;
mod decompress;
mod initramfs;
mod install;
mod module;
mod package;
mod store;
mod version;

use std::io;
use std::path::{Path, PathBuf};

pub use store::{Kernel, KernelDescription, KernelStore};

/// Where guest kernels are kept, in the state directory.
pub const IN_STATE: &str = "agent/guest";
/// The meta package that always depends on Debian's newest kernel for virtual machines.
pub const DEBIAN_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Why a guest kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The package, or what is in it, is not what it should be; why.
    #[error("{} is not a kernel package that can be used: {why}", path.display())]
    Package { path: PathBuf, why: String },
    #[error("there is no guest kernel {0}; `coracle kernel list` lists them")]
    Unknown(String),
}

impl GuestError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
