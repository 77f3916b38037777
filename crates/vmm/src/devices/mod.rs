//! The devices that are not virtio's.

pub mod generation;
pub mod serial;
