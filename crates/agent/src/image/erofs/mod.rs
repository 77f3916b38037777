//! Layers as EROFS images, which a microVM's guest mounts read-only as the lower layers of an overlay.
//!
//! Written here rather than by a library: the one at hand, `microsandbox-image`, brings 290 crates without any feature
//! (among them a virtual machine monitor, an image puller and a TLS stack), while what is needed of the format, without
//! compression, is a superblock and three kinds of records. `docs/decisions/0004-own-erofs-writer.md` says more.
//!
//! ```text
//! scan     the layer's directory ─▶ inodes and entries
//! write    where each goes; the image
//! format   the bytes of the format
//! layers   images of the store's layers
//! ```

mod format;
mod layers;
mod scan;
mod write;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

pub(super) use layers::Builds;
pub use layers::ErofsLayer;

/// Why there is no image of a layer.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The layer has something that no image can hold.
    #[error("{what} is over the limit of {limit}")]
    TooLarge { what: &'static str, limit: String },
    /// The host's disk is full.
    #[error("write a layer's image: no space left on device")]
    DiskFull,
    #[error("cannot {what} {path}")]
    Host {
        what: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
}

impl ErofsError {
    pub(super) fn host(what: &'static str, path: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self::Host { what, path: path.to_string(), source: source.into() }
    }
}

pub(super) struct Options {
    /// The image's name for itself.
    pub(super) uuid: [u8; 16],
    /// This much of the file system is left free, in bytes.
    pub(super) min_free_bytes: u64,
}

/// Writes the image of an unpacked layer into `file`, which is empty. The same tree makes the same bytes. Gives the
/// image's length in bytes, a multiple of 4096. Blocks.
pub(super) fn build(layer: &Path, file: &File, options: &Options) -> Result<u64, ErofsError> {
    let tree = scan::Tree::scan(layer)?;
    write::write(&tree, file, options)
}

#[cfg(test)]
mod tests;
