//! Which pages of the guest's memory hold something of its own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;

pub const PAGE: usize = 4096;
/// Bits of an entry of `/proc/PID/pagemap` (admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;
const ENTRY: u64 = 8;

/// This process's `/proc/PID/pagemap`, as its agent opened it.
#[derive(Debug)]
pub struct PageMap(File);

impl PageMap {
    #[must_use]
    pub fn new(file: OwnedFd) -> Self {
        Self(File::from(file))
    }

    /// Of `count` pages from this address on: which were written to since they were mapped. In a
    /// private mapping of a file, the others are as in the file; in an anonymous one, zeros.
    ///
    /// # Errors
    /// It is another kind of file, or the process it belonged to is gone.
    pub fn written(&self, address: usize, count: usize) -> io::Result<Vec<bool>> {
        let mut entries = vec![0; count * ENTRY as usize];
        self.0.read_exact_at(&mut entries, (address / PAGE) as u64 * ENTRY)?;
        let written = entries.chunks_exact(ENTRY as usize).map(|entry| {
            let entry = entry.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0
        });
        Ok(written.collect())
    }
}

/// The stretches of a file that are not holes.
///
/// # Errors
/// The file's kind knows no holes.
pub fn data(file: &File) -> io::Result<Vec<std::ops::Range<u64>>> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
                found.push(start..at);
            }
            // No data from there on.
            Err(rustix::io::Errno::NXIO) => return Ok(found),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lies_between_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(data(&file).unwrap(), []);
        file.write_all_at(&[1; PAGE], 64 * PAGE as u64).unwrap();
        let found = data(&file).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].start <= 64 * PAGE as u64 && found[0].end >= 65 * PAGE as u64, "{found:?}");
        assert!(found[0].end - found[0].start < 1 << 19, "{found:?}");
    }
}
