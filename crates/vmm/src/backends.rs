//! From the agent's description of devices to the devices.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;

use model::microvm::Devices;

use crate::files::{Files, MissingFile};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::block::Block;
use crate::virtio::entropy::Entropy;
use crate::virtio::net::Net;
use crate::virtio::vsock::{Vsock, VsockPort};

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    File(#[from] MissingFile),
    #[error("disk {0} cannot be used")]
    Disk(usize, #[source] io::Error),
    #[error("the {0} cannot be used")]
    Backend(&'static str, #[source] io::Error),
}

/// What stands behind a machine's devices.
pub struct Backends {
    /// In the guest's order: disks, network, vsock, entropy, balloon.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    pub balloon: balloon::Control,
}

/// Makes the devices. Every machine has a source of entropy and a balloon.
///
/// # Errors
/// A file is missing or cannot be what it is said to be.
pub fn open(description: &Devices, files: &mut Files) -> Result<Backends, BackendError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, disk) in description.disks.iter().enumerate() {
        let parts = disk.parts.iter().map(|part| files.take(*part).map(File::from));
        let parts = parts.collect::<Result<_, _>>()?;
        let block = Block::new(parts, disk.read_only, disk.rate_limit, disk_id(index));
        devices.push(Box::new(block.map_err(|error| BackendError::Disk(index, error))?));
    }
    if let Some(network) = &description.network {
        let tap = network.tap.map(|tap| files.take(tap)).transpose()?;
        let net = Net::new(tap, network.mac, network.mtu, network.transmit_limit, network.receive_limit)
            .map_err(|error| BackendError::Backend("tap device", error))?;
        devices.push(Box::new(net));
    }
    if let Some(vsock) = &description.vsock {
        let mut ports = Vec::new();
        for port in &vsock.ports {
            let listener = UnixListener::from(files.take(port.listener)?);
            ports.push(VsockPort { listener, port: port.port });
        }
        let vsock = Vsock::new(ports).map_err(|error| BackendError::Backend("vsock", error))?;
        devices.push(Box::new(vsock));
    }
    let entropy = Entropy::new().map_err(|error| BackendError::Backend("source of entropy", error))?;
    devices.push(Box::new(entropy));
    let balloon = Balloon::new();
    let control = balloon.control();
    devices.push(Box::new(balloon));
    Ok(Backends { devices, balloon: control })
}

/// What the guest reads as the disk's serial number: "disk0", "disk1", …
fn disk_id(index: usize) -> [u8; 20] {
    let mut id = [0; 20];
    for (place, byte) in id.iter_mut().zip(format!("disk{index}").bytes()) {
        *place = byte;
    }
    id
}
