//! The few system calls that no safe wrapper offers. All `unsafe` of this crate is here
//! and below.

#![allow(unsafe_code)]

pub mod bpf;

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use nix::libc;
use nix::unistd::{ForkResult, Pid};

/// `MOUNT_ATTR_*` of `mount_setattr(2)`.
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `struct loop_info64` of `<linux/loop.h>`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `<linux/loop.h>`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Forks this process, which has one thread.
pub fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: the supervisor never starts a thread, so no lock can be held by another thread at the
    // moment of the fork and the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends this process without running the parent's exit handlers: for forked children.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Sets attributes (`ATTR_*`) of a mount and all mounts below it; with [`ATTR_IDMAP`], `userns`
/// is the user namespace whose mapping is applied.
pub fn mount_setattr(mount: impl AsFd, set: u64, userns: Option<&dyn AsRawFd>) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0)),
    };
    // SAFETY: the path is a terminated empty string and `attr` is a valid mount_attr of the size
    // given; the kernel reads both during the call only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks `/dev/loop-control` for the number of a free loop device.
pub fn loop_get_free(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches `backing` to a loop device. The kernel detaches it at the last close or unmount.
pub fn loop_configure(device: impl AsFd, backing: impl AsFd) -> io::Result<()> {
    // SAFETY: LoopConfig is plain integers and byte arrays, for which all zeroes are valid.
    let mut config: LoopConfig = unsafe { zeroed() };
    config.fd = u32::try_from(backing.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: `config` is a valid loop_config that outlives the call.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct blkpg_partition` of `<linux/blkpg.h>`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg` of `<linux/blkpg.h>`.
#[repr(C)]
struct BlkpgArgument {
    operation: i32,
    flags: i32,
    length: i32,
    data: *const BlkpgPartition,
}

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: i32 = 1;

/// Tells the kernel that a disk has a partition there; bytes. Nothing is written to the disk.
pub fn add_partition(disk: impl AsFd, number: i32, start: i64, length: i64) -> io::Result<()> {
    let partition = BlkpgPartition { start, length, number, device_name: [0; 64], volume_name: [0; 64] };
    let argument = BlkpgArgument {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        length: i32::try_from(size_of::<BlkpgPartition>()).unwrap_or(0),
        data: &raw const partition,
    };
    // SAFETY: `argument` and the partition it points to are valid and outlive the call, which only
    // reads them.
    let result = unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKPG as _, &raw const argument) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The most entropy that [`add_entropy`] takes at once, in bytes.
pub const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info` of `<linux/random.h>`.
#[repr(C)]
struct RandPoolInfo {
    /// What the bytes are worth, in bits.
    entropy_count: i32,
    /// In bytes.
    size: i32,
    pool: [u8; MAX_ENTROPY],
}

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Gives bytes to the kernel's random number generator, which takes them for wholly random.
///
/// # Errors
/// There are more than [`MAX_ENTROPY`], or the caller lacks CAP_SYS_ADMIN.
pub fn add_entropy(device: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let mut info = RandPoolInfo { entropy_count: 0, size: 0, pool: [0; MAX_ENTROPY] };
    let pool = info.pool.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
    pool.copy_from_slice(bytes);
    info.size = i32::try_from(bytes.len()).unwrap_or(0);
    info.entropy_count = info.size * 8;
    // SAFETY: `info` is a valid rand_pool_info with `size` bytes in its pool, and outlives the call.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), RNDADDENTROPY as _, &raw const info) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel's random number generator take a new key from what it was given.
pub fn reseed(device: impl AsFd) -> io::Result<()> {
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), RNDRESEEDCRNG as _) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel run the wall clock a little faster or slower until it has gained this much
/// (adjtimex(2), `ADJ_OFFSET_SINGLESHOT`: 0.5 ms a second).
pub fn slew_clock(microseconds: i64) -> io::Result<()> {
    // SAFETY: timex is plain data, for which all zeroes are valid.
    let mut request: libc::timex = unsafe { zeroed() };
    request.modes = libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = microseconds;
    // SAFETY: `request` is a valid timex that outlives the call.
    let result = unsafe { libc::adjtimex(&raw mut request) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings up the interface `lo` of the network namespace that `socket` belongs to.
pub fn bring_up_loopback(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is a valid ifreq that outlives the call.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Owns a descriptor that the kernel has just made for this process.
pub fn own(descriptor: std::os::fd::RawFd) -> std::os::fd::OwnedFd {
    // SAFETY: callers pass a descriptor received by SCM_RIGHTS, which nothing else knows.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) }
}

/// Gives back to the kernel what the allocator holds and does not use, and the pages of program
/// text, which are read again from the page cache (shared by all supervisors) when needed.
pub fn trim_memory() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(program_text) {
        // SAFETY: the range is a private file mapping that is executable and was never writable:
        // it has no changed pages, so that dropping it loses nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// The range of a line of `/proc/self/maps`, if it is text of a file.
fn program_text(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_text = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    is_text.then_some((start, end.checked_sub(start)?))
}

/// Restores the signal state that a program expects at its start: nothing blocked, nothing ignored.
/// What is ignored stays so over `execve`, from whoever started `coracle up`: a shell's background
/// jobs ignore SIGINT and SIGQUIT, `nohup` SIGHUP. A program that inherits it does not hear its
/// stop signal, and a POSIX shell cannot even trap it ("2.11 Signals and Error Handling").
pub fn reset_signals() {
    let empty = nix::sys::signal::SigSet::empty();
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&empty), None);
    // `struct sigaction` as the kernel has it: all zeroes is SIG_DFL. The C library's own call would
    // leave the signals that it keeps for itself.
    let default = [0u64; 4];
    for signal in 1..=64u32 {
        // SAFETY: the kernel only reads a sigaction from `default`, which is large enough on every
        // architecture, and SIG_DFL installs no handler of ours. SIGKILL and SIGSTOP are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<libc::c_void>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Marks every descriptor from 3 on to be closed by `execve`.
pub fn close_on_exec_from_3() {
    // SAFETY: CLOSE_RANGE_CLOEXEC only sets flags of descriptors.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Closes every descriptor: for a process that only waits.
pub fn close_all() {
    // SAFETY: the caller uses no descriptor any more; owners of these never drop, since the
    // process does not return.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0);
    }
}

/// Sends a signal that may be a real-time one.
pub fn kill(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: kill has no memory effects; the kernel checks the number.
    nix::errno::Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Duplicates `from` onto the standard descriptor `to` (0, 1 or 2).
pub fn dup_onto(from: impl AsFd, to: i32) -> io::Result<()> {
    // SAFETY: dup2 onto a standard descriptor; no OwnedFd owns descriptors 0 to 2 in this program.
    let result = unsafe { libc::dup2(from.as_fd().as_raw_fd(), to) };
    if result == to { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a file the standard descriptor `to` (0, 1 or 2), which may be closed, for good.
pub fn stay_open_as(file: std::fs::File, to: i32) -> io::Result<()> {
    if file.as_raw_fd() == to {
        // Not closed at the end of this function, nor by an execve.
        let descriptor = file.into_raw_fd();
        // SAFETY: F_SETFD only sets flags of a descriptor.
        let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) };
        return if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    }
    dup_onto(&file, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_recognised() {
        let line = "1000-3000 r-xp 00001000 fe:00 123 /usr/bin/x";
        assert_eq!(program_text(line), Some((0x1000, 0x2000)));
        for other in ["1000-3000 r--p 0 fe:00 1 /usr/bin/x", "1000-3000 r-xp 00000000 00:00 0 [vdso]", ""] {
            assert_eq!(program_text(other), None);
        }
    }

    #[test]
    fn layouts_match_the_kernel() {
        assert_eq!(size_of::<MountAttr>(), 32);
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(size_of::<BlkpgPartition>(), 152);
        assert_eq!(size_of::<BlkpgArgument>(), 24);
        assert_eq!(size_of::<RandPoolInfo>(), 8 + MAX_ENTROPY);
    }
}
