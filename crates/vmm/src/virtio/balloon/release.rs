//! Giving the host's memory behind a part of the guest's back.

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use crate::GuestMemory;
use crate::virtio::DeviceError;

/// The host's page size on x86-64. Guest memory is made of whole pages at multiples of it, in the
/// guest's address space as in this process's.
const PAGE: usize = 4096;

/// Gives the whole pages inside of this range back to the host. The guest may use them again at any
/// time, and does not rely on their contents until it has written to them: that is what putting
/// a page into the balloon, or reporting it as free, says (5.5.6.1, 5.5.6.7; a Linux that fills free
/// pages with a pattern or zeros does not report them unless it was offered
/// `VIRTIO_BALLOON_F_PAGE_POISON`).
///
/// What it reads then depends on the memory's mapping:
/// - anonymous (a machine that was booted): zeros.
/// - a private mapping of a snapshot's file (a restored machine): the copies that the guest's
///   writes made are freed, and it reads the snapshot again. That is no leak: the snapshot is this
///   guest's own past, all of which it could read when it began. And it costs no memory: those are
///   the pages of the host's cache that all clones share. Anonymous memory mapped over the range
///   would read as zeros, but each such range is a mapping more, and a guest that reports every
///   other page would soon have this process at the kernel's limit for them (`vm.max_map_count`).
///
/// # Errors
/// The host's.
pub fn release(range: &VolatileSlice<'_>) -> io::Result<()> {
    let start = range.ptr_guard_mut().as_ptr();
    let before = start.align_offset(PAGE);
    let whole = range.len().saturating_sub(before) & !(PAGE - 1);
    if whole == 0 {
        return Ok(());
    }
    discard(start.wrapping_add(before), whole)
}

/// The same for whole pages of the guest's address space.
///
/// # Errors
/// The host's, or the range does not lie in the guest's memory; then nothing is given back.
pub fn release_pages(memory: &GuestMemory, addr: u64, length: u64) -> Result<(), DeviceError> {
    let addr = GuestAddress(addr);
    let length = usize::try_from(length)
        .ok()
        .filter(|&length| memory.check_range(addr, length, Permissions::Write))
        .ok_or(vm_memory::GuestMemoryError::InvalidGuestAddress(addr))?;
    for piece in memory.get_slices(addr, length, Permissions::Write)? {
        release(&piece?)?;
    }
    Ok(())
}

#[allow(unsafe_code)]
fn discard(start: *mut u8, length: usize) -> io::Result<()> {
    // SAFETY: the range is guest memory, of which this process holds no Rust reference and about
    // whose contents it assumes nothing; after the call it is mapped as before.
    unsafe { madvise(start.cast(), length, Advice::LinuxDontNeed)? };
    Ok(())
}
