//! From the agent's description of devices to the devices.

use std::io;

use model::microvm::Devices;

use crate::files::{Files, MissingFile};
use crate::virtio::VirtioDevice;

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    File(#[from] MissingFile),
    #[error("the {0} cannot be used")]
    Backend(&'static str, #[source] io::Error),
}

/// What stands behind a machine's devices.
pub struct Backends {
    /// In the guest's order: disks, network, vsock, entropy, balloon.
    pub devices: Vec<Box<dyn VirtioDevice>>,
}

/// Makes the devices.
///
/// # Errors
/// A file is missing or cannot be what it is said to be.
pub fn open(_description: &Devices, _files: &mut Files) -> Result<Backends, BackendError> {
    let devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    Ok(Backends { devices })
}
