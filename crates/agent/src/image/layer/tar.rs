//! A reader of tar archives as image layers hold them: ustar, GNU and PAX (POSIX.1-2008 pax, "ustar Interchange Format";
//! GNU tar manual, "Basic Tar Format" and "Storing Sparse Files").
//!
//! Own, since the archive is hostile and large: every header is bounded before it is read, PAX sizes over 8 GiB and every
//! sparse form are understood, and file data is handed out in the reader's own buffer, without a copy.

use std::io::{self, BufRead};

use super::pax::{self, Pax};

const BLOCK: usize = 512;
/// The longest extended header (PAX or GNU long name), in bytes. Holds the kernel's largest xattr (64 KiB) many times.
const EXTENDED_MAX: u64 = 1 << 20;
/// The most data segments in one sparse file.
const SEGMENTS_MAX: usize = 1 << 20;

/// Why an archive could not be read.
#[derive(Debug)]
pub(crate) enum TarError {
    /// The archive ends inside of an entry.
    Truncated,
    /// The archive does not follow the format.
    Malformed(String),
    /// The reader below failed.
    Io(io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

pub(super) fn malformed(why: impl Into<String>) -> TarError {
    TarError::Malformed(why.into())
}

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice,
    Directory,
    Fifo,
}

/// A point in time: seconds since the epoch, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// A run of data in a sparse file: where it goes, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// One entry's header, extended headers applied.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As in the archive: may be absolute, empty or have any component.
    pub(crate) path: Vec<u8>,
    /// The target of a hard link or symlink.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Length of a file in bytes, holes included.
    pub(crate) size: u64,
    /// Data segments of a sparse file, in order and without overlap; `None` when all is data.
    pub(crate) sparse: Option<Vec<Segment>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one by one from `input`.
pub(crate) struct TarReader<R> {
    input: R,
    /// Data bytes of the current entry not yet read.
    remaining: u64,
    /// Zero bytes between them and the next header.
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, remaining: 0, padding: 0 }
    }

    /// The next entry, or `None` at the archive's end. What was not read of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip(self.remaining + self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        let mut pax: Option<Pax> = None;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            let Some(header) = self.header()? else {
                if pax.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(TarError::Truncated);
                }
                return Ok(None);
            };
            let size = header.number(124..136)?;
            match header.0[156] {
                b'x' => pax = Some(Pax::parse(&self.extended(size)?)?),
                // Global headers carry comments (git archive); Docker ignores them too.
                b'g' => drop(self.extended(size)?),
                b'L' => long_name = Some(until_nul(&self.extended(size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extended(size)?).to_vec()),
                _ => {
                    return self
                        .entry(&header, size, pax.unwrap_or_default(), long_name, long_link)
                        .map(Some);
                }
            }
        }
    }

    /// Up to `max` bytes of the current entry's data, in the reader's buffer; empty at their end. To be followed by
    /// [`Self::consume`].
    pub(crate) fn data(&mut self, max: u64) -> Result<&[u8], TarError> {
        let wanted = max.min(self.remaining);
        if wanted == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            return Err(TarError::Truncated);
        }
        let length = buffer.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
        Ok(&buffer[..length])
    }

    /// Marks `amount` bytes of what [`Self::data`] gave as read.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.remaining -= amount as u64;
    }

    /// The reader below, to read what follows the archive's end.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn entry(
        &mut self,
        header: &Header,
        header_size: u64,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let path = pax.path.take().or(long_name).unwrap_or_else(|| header.path());
        let link =
            pax.linkpath.take().or(long_link).unwrap_or_else(|| until_nul(&header.0[157..257]).to_vec());
        let stored = pax.size.unwrap_or(header_size);
        let kind = match header.0[156] {
            // Before POSIX, a directory was a file whose name ends so.
            0 | b'0' | b'7' if path.ends_with(b"/") && !pax.is_sparse() => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => {
                Kind::CharDevice { major: header.number_u32(329..337)?, minor: header.number_u32(337..345)? }
            }
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(malformed(format!("unhandled tar header type {:?}", char::from(other)))),
        };
        // Other kinds have no data, whatever their size field says (as Go's archive/tar).
        let stored = if kind == Kind::File { stored } else { 0 };
        if stored.max(pax.sparse_size.unwrap_or(0)) > i64::MAX as u64 {
            return Err(malformed("file size in a tar header is too large"));
        }
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let (size, sparse, path) = if kind != Kind::File {
            (0, None, path)
        } else if header.0[156] == b'S' {
            let (size, segments) = self.gnu_sparse(header)?;
            (size, Some(segments), path)
        } else if pax.is_sparse() {
            let path = pax.sparse_name.take().unwrap_or(path);
            let segments =
                if pax.sparse_map_in_data { self.sparse_map()? } else { std::mem::take(&mut pax.sparse_map) };
            let size = pax.sparse_size.ok_or_else(|| malformed("sparse file without its size"))?;
            (size, Some(segments), path)
        } else {
            (stored, None, path)
        };
        if let Some(segments) = &sparse {
            check_sparse(segments, size, self.remaining)?;
        }
        let entry = Entry {
            path,
            link,
            kind,
            mode: u32::try_from(header.number(100..108)? & 0o7777).unwrap_or(0),
            uid: pax.uid.map_or_else(|| header.number_u32(108..116), Ok)?,
            gid: pax.gid.map_or_else(|| header.number_u32(116..124), Ok)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time { seconds: header.signed(136..148)?, nanoseconds: 0 },
            },
            size,
            sparse,
            xattrs: pax.xattrs,
        };
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(malformed("owner -1"));
        }
        Ok(entry)
    }

    /// Reads a header block; `None` at the end of the archive (a zero block, or the end of the input at a boundary, which
    /// some writers leave it at).
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let read = self.input.read(&mut block[filled..])?;
            if read == 0 {
                return if filled == 0 { Ok(None) } else { Err(TarError::Truncated) };
            }
            filled += read;
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header(block);
        header.verify()?;
        Ok(Some(header))
    }

    /// Reads an extended header's data and its padding.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENDED_MAX {
            return Err(malformed(format!("extended header of {size} bytes (at most {EXTENDED_MAX})")));
        }
        let mut data = vec![0; size as usize];
        self.input.read_exact(&mut data)?;
        self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(data)
    }

    fn skip(&mut self, mut amount: u64) -> Result<(), TarError> {
        while amount > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Err(TarError::Truncated);
            }
            let step = available.min(usize::try_from(amount).unwrap_or(usize::MAX));
            self.input.consume(step);
            amount -= step as u64;
        }
        Ok(())
    }

    /// The old GNU form: four segments in the header, 21 in each block that follows.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<Segment>), TarError> {
        let size = header.number(483..495)?;
        let mut segments = Vec::new();
        push_segments(&mut segments, &header.0[386..482])?;
        let mut extended = header.0[482] != 0;
        while extended {
            let mut block = [0; BLOCK];
            self.input.read_exact(&mut block)?;
            push_segments(&mut segments, &block[..504])?;
            extended = block[504] != 0;
        }
        Ok((size, segments))
    }

    /// The PAX 1.0 form: decimal numbers, a line each, in blocks before the data: their count, then offset and length each.
    fn sparse_map(&mut self) -> Result<Vec<Segment>, TarError> {
        let mut block: Vec<u8> = Vec::new();
        let mut position = 0;
        let mut number = |this: &mut Self| -> Result<u64, TarError> {
            let mut value: u64 = 0;
            for digits in 0.. {
                if position == block.len() {
                    if this.remaining < BLOCK as u64 {
                        return Err(malformed("sparse map runs past the entry"));
                    }
                    block.resize(BLOCK, 0);
                    this.input.read_exact(&mut block)?;
                    this.remaining -= BLOCK as u64;
                    position = 0;
                }
                let byte = block[position];
                position += 1;
                match byte {
                    b'\n' if digits > 0 => break,
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| malformed("sparse map number is too large"))?;
                    }
                    _ => return Err(malformed("sparse map is not made of numbers")),
                }
            }
            Ok(value)
        };
        let count = number(self)?;
        if count > SEGMENTS_MAX as u64 {
            return Err(malformed(format!("sparse file of {count} segments (at most {SEGMENTS_MAX})")));
        }
        (0..count).map(|_| Ok(Segment { offset: number(self)?, length: number(self)? })).collect()
    }
}

/// Checks that segments are in order, inside of the file, and exactly as long as the stored data.
fn check_sparse(segments: &[Segment], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0_u64;
    let mut data = 0_u64;
    for segment in segments {
        let segment_end = segment.offset.checked_add(segment.length);
        match segment_end {
            Some(segment_end) if segment.offset >= end && segment_end <= size => {
                end = segment_end;
                data += segment.length;
            }
            _ => return Err(malformed("sparse file's segments overlap or pass its end")),
        }
    }
    if data != stored {
        return Err(malformed("sparse file's segments are not as long as its data"));
    }
    Ok(())
}

fn push_segments(segments: &mut Vec<Segment>, fields: &[u8]) -> Result<(), TarError> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            break;
        }
        if segments.len() >= SEGMENTS_MAX {
            return Err(malformed(format!("sparse file of more than {SEGMENTS_MAX} segments")));
        }
        segments.push(Segment { offset: unsigned(&field[..12])?, length: unsigned(&field[12..])? });
    }
    Ok(())
}

struct Header([u8; BLOCK]);

impl Header {
    /// Checks the sum over all bytes, the sum's own field taken as spaces. Signed sums are of old writers.
    fn verify(&self) -> Result<(), TarError> {
        let expected = unsigned(&self.0[148..156])?;
        let byte = |(index, byte): (usize, &u8)| if (148..156).contains(&index) { b' ' } else { *byte };
        let sum: u64 = self.0.iter().enumerate().map(|b| u64::from(byte(b))).sum();
        let signed: i64 = self.0.iter().enumerate().map(|b| i64::from(byte(b).cast_signed())).sum();
        if expected == sum || i64::try_from(expected) == Ok(signed) {
            Ok(())
        } else {
            Err(malformed("tar header checksum mismatch"))
        }
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // GNU headers ("ustar  ") hold other things where POSIX ones hold a prefix.
        let prefix = if &self.0[257..263] == b"ustar\0" { until_nul(&self.0[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn number(&self, range: std::ops::Range<usize>) -> Result<u64, TarError> {
        unsigned(&self.0[range])
    }

    fn number_u32(&self, range: std::ops::Range<usize>) -> Result<u32, TarError> {
        u32::try_from(self.number(range)?).map_err(|_| malformed("number in a tar header is too large"))
    }

    fn signed(&self, range: std::ops::Range<usize>) -> Result<i64, TarError> {
        pax::signed_number(&self.0[range])
    }
}

fn unsigned(field: &[u8]) -> Result<u64, TarError> {
    u64::try_from(pax::signed_number(field)?).map_err(|_| malformed("negative number in a tar header"))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or(field)
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
