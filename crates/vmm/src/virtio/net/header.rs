//! The header of a frame (5.1.6, `struct virtio_net_hdr`): only what was negotiated gets through to
//! the host's kernel, and to the driver.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::HEADER;

/// Where `flags` lies.
pub(super) const FLAGS: usize = 0;
/// Where `num_buffers` lies.
pub(super) const BUFFERS: usize = 10;
/// Where `gso_type` lies.
pub(super) const GSO_TYPE: usize = 1;

/// Makes a header from the guest one for the host's kernel. `None`: it asks for what was not
/// negotiated (5.1.6.2.1), so its frame is dropped. The offsets in it are the kernel's to check.
pub(super) fn for_host(mut header: [u8; HEADER], features: u64) -> Option<[u8; HEADER]> {
    let has = |feature: u32| features & (1 << feature) != 0;
    let needs_checksum = u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let allowed = match u32::from(header[GSO_TYPE]) {
        VIRTIO_NET_HDR_GSO_NONE => !needs_checksum || has(VIRTIO_NET_F_CSUM),
        VIRTIO_NET_HDR_GSO_TCPV4 => needs_checksum && has(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => needs_checksum && has(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    header[FLAGS] = if needs_checksum { VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 } else { 0 };
    header[BUFFERS..].fill(0);
    allowed.then_some(header)
}

/// Whether a frame from the host is one that this driver takes (5.1.6.4.1). What is not was queued in
/// the tap for a driver before this one.
pub(super) fn is_for_guest(gso_type: u8, features: u64) -> bool {
    let has = |feature: u32| features & (1 << feature) != 0;
    match u32::from(gso_type) {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_GUEST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_GUEST_TSO6),
        _ => false,
    }
}
