//! The VM generation id: a number that changes when the machine is a copy of another, so that the
//! guest's kernel reseeds its random number generator.
//!
//! Source: "Virtual Machine Generation ID", Microsoft; Linux, `drivers/virt/vmgenid.c`.

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::boot::layout;

#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error("the host gives no random numbers")]
    Random(#[from] rustix::io::Errno),
    #[error("the generation id lies outside of the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Gives the machine a new generation id.
///
/// # Errors
/// The host gives no random numbers.
pub fn renew(memory: &GuestMemory) -> Result<(), GenerationError> {
    let mut id = [0u8; 16];
    let mut filled = 0;
    while filled < id.len() {
        filled += rustix::rand::getrandom(&mut id[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    memory.write_slice(&id, GuestAddress(layout::GENERATION_ID))?;
    Ok(())
}

/// Tells the guest that its generation id is a new one. `line` is the event device's interrupt.
pub fn notify(line: &EventFd) {
    // Fails only if it is pending already.
    let _ = line.write(1);
}
