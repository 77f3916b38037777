//! Attaching a file to a loop device: loop(4).
//!
//! Self-contained (rustix only), as the supervisor, which mounts the disk in its own mount
//! namespace, needs it too and may not import this crate.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

/// Major device number of loop devices.
const LOOP_MAJOR: u32 = 7;
/// Another process can take the free device that we were told of; then ask again.
const ATTEMPTS: usize = 64;

/// A loop device with a file behind it. It detaches itself (`LO_FLAGS_AUTOCLEAR`) when this value
/// is dropped and no mount uses the device any more.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    // Held so that the device stays attached until it is mounted.
    _device: OwnedFd,
}

impl LoopDevice {
    /// Such as `/dev/loop3`.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Attaches `file` (opened for reading and writing) to a free loop device. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// `NotFound` when the kernel has no loop driver (`/dev/loop-control` is missing: `modprobe loop`);
/// otherwise what the kernel says.
pub fn attach(file: &File) -> io::Result<LoopDevice> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(|error| {
        io::Error::new(error.kind(), format!("/dev/loop-control: {error}; is the loop driver loaded?"))
    })?;
    for _ in 0..ATTEMPTS {
        let number = ioctl::free_device(&control)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_device(&path, number)?;
        match ioctl::configure(&device, file.as_raw_fd()) {
            Ok(()) => return Ok(LoopDevice { path, _device: device.into() }),
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device stays free"))
}

/// Opens the device, making its file where nothing (no devtmpfs) made it.
fn open_device(path: &std::path::Path, number: u32) -> io::Result<File> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() => {}
        Ok(_) => return Err(io::Error::other(format!("{} is not a block device", path.display()))),
        Err(_) => {
            let device = rustix::fs::makedev(LOOP_MAJOR, number);
            match rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                FileType::BlockDevice,
                Mode::RUSR | Mode::WUSR,
                device,
            ) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    OpenOptions::new().read(true).write(true).open(path)
}

/// The two ioctls. Source: linux/loop.h.
#[allow(unsafe_code)]
mod ioctl {
    use std::fs::File;
    use std::os::fd::RawFd;

    use rustix::io;
    use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl, opcode};

    const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
    const LOOP_CONFIGURE: Opcode = 0x4C0A;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;

    /// `struct loop_info64`.
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

    /// `struct loop_config`.
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        info: LoopInfo64,
        reserved: [u64; 8],
    }

    struct GetFree;

    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number; nothing is written.
    unsafe impl Ioctl for GetFree {
        type Output = u32;
        const IS_MUTATING: bool = false;

        fn opcode(&self) -> Opcode {
            LOOP_CTL_GET_FREE
        }

        fn as_ptr(&mut self) -> *mut std::ffi::c_void {
            std::ptr::null_mut()
        }

        unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> io::Result<u32> {
            // The kernel's numbers are not negative: an error came as Err already.
            Ok(out.unsigned_abs())
        }
    }

    /// Number of a device that is free now.
    pub fn free_device(control: &File) -> io::Result<u32> {
        // SAFETY: see `GetFree`; on a file that is not /dev/loop-control the kernel says ENOTTY.
        unsafe { ioctl(control, GetFree) }
    }

    /// Puts the file `fd` behind the device; EBUSY when it has one.
    pub fn configure(device: &File, fd: RawFd) -> io::Result<()> {
        const _: () = assert!(size_of::<LoopConfig>() == 304 && opcode::none(0, 0) == 0);
        let config = LoopConfig {
            fd: fd.unsigned_abs(),
            block_size: 0,
            info: LoopInfo64 {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                sizelimit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `LoopConfig` mirrors (its size
        // is checked above); it keeps no pointer.
        unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
    }
}
