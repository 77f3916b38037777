//! EROFS on disk, as far as it is written here (Linux 6.1: Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).
//!
//! Everything is little-endian, in blocks of 4 KiB. Only what Linux 5.4, the first with EROFS, reads is used: extended
//! inodes, data plain or with its tail inline, extended attributes inline.

use std::ops::Range;

use rustix::fs::FileType;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
const LOG_BLOCK: u8 = 12;
const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_AT: usize = 1024;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME`.
const COMPATIBLE_FEATURES: u32 = 1 | 2;
/// Where the first inode is: in the block after the superblock's. An inode's number is its place in units of
/// [`SLOT`], so the root gets 128; programs take a directory entry with number 0 for a deleted one.
pub(super) const INODES_AT: u64 = BLOCK;
/// Inodes begin at multiples of this.
pub(super) const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub(super) const INODE: u64 = 64;
/// Bytes of a directory entry without its name.
const ENTRY: usize = 12;
const XATTR_HEADER: usize = 12;
/// The most that all of an inode's attributes take, encoded: their count of 4-byte units is 16 bits wide.
pub(super) const XATTRS_MAX: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);

/// What the superblock says of the whole.
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The image's first block.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let sb = &mut block[SUPERBLOCK_AT..];
        sb[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        sb[8..12].copy_from_slice(&COMPATIBLE_FEATURES.to_le_bytes());
        sb[12] = LOG_BLOCK;
        sb[14..16].copy_from_slice(&self.root.to_le_bytes());
        sb[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        // 24..36: the build's time, for inodes without one of their own. There are none, and equal layers make equal images.
        sb[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        // 40..48: inodes and shared attributes are counted from block 0.
        sb[48..64].copy_from_slice(&self.uuid);
        let checksum = crc32c(sb);
        sb[4..8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)`: not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// An extended inode.
pub(super) struct Inode {
    /// With the file's type.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    /// Seconds since the epoch; earlier ones are negative.
    pub(super) mtime: i64,
    pub(super) mtime_nanoseconds: u32,
    /// First data block, or a device's number.
    pub(super) data: u32,
    /// Whether what comes after the last full block follows the inode.
    pub(super) inline: bool,
    /// As [`encode_xattrs`] gave them.
    pub(super) xattrs: usize,
    /// Counts inodes from 1.
    pub(super) serial: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; INODE as usize] {
        const EXTENDED: u16 = 1;
        const FLAT_INLINE: u16 = 2 << 1;
        let format = EXTENDED | if self.inline { FLAT_INLINE } else { 0 };
        let units = if self.xattrs == 0 { 0 } else { (self.xattrs - XATTR_HEADER) / 4 + 1 };
        let mut inode = [0; INODE as usize];
        inode[0..2].copy_from_slice(&format.to_le_bytes());
        inode[2..4].copy_from_slice(&(units as u16).to_le_bytes());
        inode[4..6].copy_from_slice(&self.mode.to_le_bytes());
        inode[8..16].copy_from_slice(&self.size.to_le_bytes());
        inode[16..20].copy_from_slice(&self.data.to_le_bytes());
        inode[20..24].copy_from_slice(&self.serial.to_le_bytes());
        inode[24..28].copy_from_slice(&self.uid.to_le_bytes());
        inode[28..32].copy_from_slice(&self.gid.to_le_bytes());
        inode[32..40].copy_from_slice(&self.mtime.to_le_bytes());
        inode[40..44].copy_from_slice(&self.mtime_nanoseconds.to_le_bytes());
        inode[44..48].copy_from_slice(&self.links.to_le_bytes());
        inode
    }
}

/// A device's number as inodes hold it (Linux, `new_encode_dev`).
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// Names and values of extended attributes.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes that an image can have: their namespaces, each with its number.
const NAMESPACES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];

/// Bytes that an attribute takes in an image. `None`: it cannot be in one.
pub(super) fn xattr_length(name: &[u8], value: usize) -> Option<usize> {
    let suffix = NAMESPACES.iter().find_map(|(prefix, _)| name.strip_prefix(*prefix))?;
    let fits = !suffix.is_empty() && suffix.len() <= u8::MAX.into() && value <= u16::MAX.into();
    fits.then(|| (4 + suffix.len() + value).next_multiple_of(4))
}

/// Bytes that attributes take which by themselves take `entries` bytes.
pub(super) fn xattrs_length(entries: usize) -> usize {
    if entries == 0 { 0 } else { XATTR_HEADER + entries }
}

/// Attributes as they follow an inode. [`xattr_length`] must have allowed each of them.
pub(super) fn encode_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        let found = NAMESPACES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)));
        let Some((suffix, index)) = found else { continue };
        if bytes.is_empty() {
            // No filter, no shared attributes.
            bytes.resize(XATTR_HEADER, 0);
        }
        bytes.extend_from_slice(&[suffix.len() as u8, index]);
        bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(suffix);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A directory's entry; its names are sorted as bytes, `.` and `..` among them.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: FileType,
}

/// How names are spread over a directory's blocks: ranges of them, with the bytes that each takes. Each block holds its
/// entries, then their names.
pub(super) fn directory_blocks(lengths: impl Iterator<Item = usize>) -> Vec<(Range<usize>, usize)> {
    let mut blocks = Vec::new();
    let (mut first, mut next, mut used) = (0, 0, 0);
    for length in lengths {
        let needed = ENTRY + length;
        if used + needed > BLOCK as usize {
            blocks.push((first..next, used));
            (first, used) = (next, 0);
        }
        used += needed;
        next += 1;
    }
    blocks.push((first..next, used));
    blocks
}

/// A directory's size in bytes, given its [`directory_blocks`].
pub(super) fn directory_size(blocks: &[(Range<usize>, usize)]) -> u64 {
    blocks.last().map_or(0, |(_, used)| (blocks.len() as u64 - 1) * BLOCK + *used as u64)
}

/// One block of a directory, not filled up.
pub(super) fn encode_entries(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    let mut name_at = ENTRY * entries.len();
    for entry in entries {
        let kind = match entry.kind {
            FileType::RegularFile => 1,
            FileType::Directory => 2,
            FileType::CharacterDevice => 3,
            FileType::BlockDevice => 4,
            FileType::Fifo => 5,
            FileType::Socket => 6,
            FileType::Symlink => 7,
            FileType::Unknown => 0,
        };
        bytes.extend_from_slice(&entry.inode.to_le_bytes());
        bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
        bytes.extend_from_slice(&[kind, 0]);
        name_at += entry.name.len();
    }
    for entry in entries {
        bytes.extend_from_slice(entry.name);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnoli_ones() {
        // RFC 3720, B.4: inverted at the end.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn devices_are_numbered_as_in_the_kernel() {
        assert_eq!(encode_device(0, 0), 0);
        assert_eq!(encode_device(1, 3), 0x103);
        assert_eq!(encode_device(0x123, 0x45678), 0x4561_2378);
    }

    #[test]
    fn directories_fill_blocks_and_never_split_a_name() {
        let blocks = directory_blocks([1, 2].into_iter());
        assert_eq!((blocks.len(), directory_size(&blocks)), (1, 27));
        // 4096 = 16 * 256, exactly.
        let blocks = directory_blocks(std::iter::repeat_n(244, 17));
        assert_eq!(blocks, [(0..16, 4096), (16..17, 256)]);
        assert_eq!(directory_size(&blocks), 4096 + 256);
    }

    #[test]
    fn attributes_are_bounded() {
        assert_eq!(xattr_length(b"user.a", 3), Some(8));
        assert_eq!(xattr_length(b"user.a", 65_535), Some(65_540));
        assert_eq!(xattr_length(b"user.a", 65_536), None);
        assert_eq!(xattr_length(b"system.posix_acl_access", 4), None);
        assert_eq!(encode_xattrs(&[]).len(), xattrs_length(0));
        let two = [(b"user.a".to_vec(), b"1".to_vec()), (b"security.capability".to_vec(), vec![7; 20])];
        let length = two.iter().map(|(n, v)| xattr_length(n, v.len()).unwrap()).sum();
        assert_eq!(encode_xattrs(&two).len(), xattrs_length(length));
    }
}
