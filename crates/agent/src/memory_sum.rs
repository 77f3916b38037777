//! The checksum of a machine's memory in a file: of what is not zeros, and where it is. It does not
//! depend on which of the zeros are holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

const PAGE: usize = 4096;
/// Read at once, in bytes.
const CHUNK: usize = 64 * PAGE;

/// The CRC-32 of every page that is not zeros, and of its number.
///
/// # Errors
/// The file cannot be read.
pub fn of(file: &File) -> io::Result<u32> {
    let mut sum = crc32fast::Hasher::new();
    let mut chunk = vec![0; CHUNK];
    let length = file.metadata()?.len();
    let mut position = 0;
    while let Some(data) = next_data(file, position)? {
        position = data / PAGE as u64 * PAGE as u64;
        let end = rustix::fs::seek(file, SeekFrom::Hole(data))?.next_multiple_of(PAGE as u64).min(length);
        while position < end {
            let wanted = usize::try_from(end - position).unwrap_or(CHUNK).min(CHUNK);
            file.read_exact_at(&mut chunk[..wanted], position)?;
            for page in chunk[..wanted].chunks(PAGE) {
                if page.iter().any(|byte| *byte != 0) {
                    sum.update(&(position / PAGE as u64).to_le_bytes());
                    sum.update(page);
                }
                position += page.len() as u64;
            }
        }
    }
    Ok(sum.finalize())
}

/// Where the first data from `position` on begins.
fn next_data(file: &File, position: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 3 << 20;

    fn sum(written: &[(u64, &[u8])]) -> u32 {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH).unwrap();
        for (at, bytes) in written {
            file.write_all_at(bytes, *at).unwrap();
        }
        of(&file).unwrap()
    }

    #[test]
    fn it_is_of_what_there_is_and_where() {
        let whole = sum(&[(5, b"a"), (1 << 20, b"b")]);
        assert_eq!(sum(&[(1 << 20, b"b"), (5, b"a")]), whole);
        for other in [
            sum(&[(5, b"a")]),
            sum(&[(6, b"a"), (1 << 20, b"b")]),
            sum(&[(5, b"a"), (2 << 20, b"b")]),
            sum(&[(5, b"a"), (1 << 20, b"c")]),
            sum(&[(5, b"a"), (1 << 20, b"b"), (LENGTH - 1, b"\x01")]),
        ] {
            assert_ne!(other, whole);
        }
    }

    #[test]
    fn zeros_and_holes_are_the_same() {
        let zeros = vec![0; 1 << 20];
        assert_eq!(sum(&[(5, b"a"), (1 << 20, &zeros)]), sum(&[(5, b"a")]));
        assert_eq!(sum(&[(0, &zeros)]), sum(&[]));
    }

    #[test]
    fn a_length_need_not_be_whole_pages() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"memory", 0).unwrap();
        let before = of(&file).unwrap();
        file.write_all_at(b"M", 0).unwrap();
        assert_ne!(of(&file).unwrap(), before);
    }
}
