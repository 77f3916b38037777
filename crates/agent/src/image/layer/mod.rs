//! Layers: from a stream of compressed bytes to a directory that overlayfs can take as a lower one.

mod gzip;
mod holes;
mod pax;
mod pipeline;
mod tar;
mod tree;
mod unpack;

pub(crate) use pipeline::{Expected, Feed, LayerFailure, Unpacker};
pub(crate) use tar::{Kind, TarError, TarReader};
pub(crate) use unpack::{Limits, Unpacked};
