//! Images: an image reference and credentials in; verified, unpacked layers and the image's configuration out.
//!
//! ```text
//! ImageStore::pull
//!   reference   nginx ─▶ docker.io/library/nginx:latest
//!   registry    manifest (index ─▶ platform), config; tokens, redirects, retries
//!   pull        which layers are missing
//!   download    layers shared between pulls, resumed when cut
//!   layer       compressed bytes ─▶ digest ─▶ archive ─▶ diff id ─▶ a directory, every path resolved beneath it
//!   disk        published by one rename; what survives a kill, and what a power loss
//!   store       the index in memory; leases
//!   erofs       layers as file system images, for microVMs
//!   upkeep      garbage collection by disk budget; durability
//! ```
//!
//! Layers are directories by diff id, in overlayfs's own form (whiteouts are 0:0 devices, opaque directories carry
//! `trusted.overlay.opaque`), owners as in the image. They are shared by every image and account of the host: whoever
//! presents a config that names a diff id gets that layer, as in containerd. References are not shared: see
//! [`PullRequest::scope`].

mod config;
mod digest;
mod disk;
mod download;
mod erofs;
mod error;
mod index;
pub(crate) mod layer;
mod manifest;
mod pull;
mod reference;
mod registry;
mod store;
mod upkeep;

pub use config::{Healthcheck, ImageConfig};
pub use digest::{Digest, DigestError};
pub use disk::OpenError;
pub use erofs::{ErofsError, ErofsLayer};
pub use error::{PullError, PullErrorKind};
pub use manifest::Platform;
pub use pull::{PullPolicy, PullProgress, PullRequest};
pub use reference::{Reference, ReferenceError};
pub use registry::{Auth, RegistryEndpoint};
pub use store::{Collected, Image, ImageOptions, ImageStore, ImageSummary};
