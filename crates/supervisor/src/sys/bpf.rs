//! bpf(2), as far as a filter of devices needs it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

/// `struct bpf_insn` of `<linux/bpf.h>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    /// The destination register in the low half, the source register in the high one.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used here.
#[repr(C)]
struct LoadAttribute {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`, as far as it is used here.
#[repr(C)]
struct AttachAttribute {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Groups below may have filters of their own, which can only refuse more.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Gives a control group of version 2 a program that decides on every use of a device. The program
/// goes with the group.
///
/// # Errors
/// The kernel has no such programs, or does not accept this one.
pub fn filter_devices(group: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let program = load(program)?;
    let number = |descriptor: libc::c_int| u32::try_from(descriptor).map_err(io::Error::other);
    let attribute = AttachAttribute {
        target: number(group.as_fd().as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attribute is valid for the command, of the size given, and outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attribute, size_of::<AttachAttribute>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attribute = LoadAttribute {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attribute is valid for the command and of the size given; it and what it points to,
    // `program` with its length and a terminated string, outlive the call, which only reads them.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attribute, size_of::<LoadAttribute>())
    };
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made this descriptor (with close-on-exec) for us alone.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_match_the_kernel() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<LoadAttribute>(), 48);
        assert_eq!(size_of::<AttachAttribute>(), 16);
    }
}
