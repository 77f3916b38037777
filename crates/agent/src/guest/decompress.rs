//! The compressions of packages, kernels and modules, told apart by their first bytes.

use std::io::{self, BufRead, BufReader, Read};

/// The most memory a decoder may take for its window: Debian's packages and kernels use 64 MiB at most.
const WINDOW_MAX_KIB: u32 = 160 << 10;
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// A block of LZ4's legacy format holds this much when unpacked (LZ4 Frame Format, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;
/// The most by which LZ4 makes a block longer that cannot be compressed: n/255 + 16.
const LZ4_BLOCK_COMPRESSED_MAX: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const GZIP: &[u8] = b"\x1f\x8b";
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";

/// What is compressed in `input`, or `input` itself if it begins like none of the compressions.
///
/// # Errors
/// `input` cannot be read.
pub(super) fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = Vec::new();
    let mut input = input;
    input.by_ref().take(XZ.len() as u64).read_to_end(&mut first)?;
    let begins = |magic: &[u8]| first.starts_with(magic);
    let (xz, zstd, gzip, lz4) = (begins(XZ), begins(ZSTD), begins(GZIP), begins(LZ4_LEGACY));
    let whole = BufReader::new(io::Cursor::new(first).chain(input));
    Ok(if xz {
        Box::new(lzma_rust2::XzReader::new_mem_limit(whole, false, WINDOW_MAX_KIB))
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Box::new(decoder.single_frame())
    } else if gzip {
        Box::new(flate2::bufread::GzDecoder::new(whole))
    } else if lz4 {
        Box::new(Lz4Legacy::new(whole)?)
    } else {
        Box::new(whole)
    })
}

/// LZ4's legacy format: after the magic number, blocks of a length and that many bytes.
struct Lz4Legacy<R> {
    input: R,
    block: Vec<u8>,
    given: usize,
}

impl<R: BufRead> Lz4Legacy<R> {
    fn new(mut input: R) -> io::Result<Self> {
        input.read_exact(&mut [0; LZ4_LEGACY.len()])?;
        Ok(Self { input, block: Vec::new(), given: 0 })
    }

    /// Unpacks the next block; an empty one at the end.
    fn next(&mut self) -> io::Result<()> {
        self.block.clear();
        self.given = 0;
        if self.input.fill_buf()?.is_empty() {
            return Ok(());
        }
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LZ4_BLOCK_COMPRESSED_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an LZ4 block is too long"));
        }
        let mut packed = vec![0; length];
        self.input.read_exact(&mut packed)?;
        self.block.resize(LZ4_BLOCK, 0);
        let unpacked = lz4_flex::block::decompress_into(&packed, &mut self.block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.block.truncate(unpacked);
        Ok(())
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.block.len() {
            self.next()?;
        }
        let length = buffer.len().min(self.block.len() - self.given);
        buffer[..length].copy_from_slice(&self.block[self.given..self.given + length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(packed)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn each_compression_is_known_by_its_first_bytes() {
        let text: Vec<u8> = (0..20_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut lz4 = LZ4_LEGACY.to_vec();
        for block in [&text[..50_000], &text[50_000..]] {
            let packed = lz4_flex::block::compress(block);
            lz4.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            lz4.extend(packed);
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &text).unwrap();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        for packed in [lz4, gzip.finish().unwrap(), zstd, text.clone()] {
            assert!(unpacked(&packed).unwrap() == text);
        }
    }

    #[test]
    fn xz_is_unpacked_and_its_check_is_checked() {
        // printf 'hello from xz, hello from xz, hello from xz' | xz --check=crc64
        let packed = hex::decode(concat!(
            "fd377a585a000004e6d6b4460200210116000000742fe5a3e0002a00165d00341949ee8de912e6140ebfb9d268",
            "0a24f947ad2680000000000b012e8a24d856990001322b1a184a611fb6f37d010000000004595a",
        ));
        let mut packed = packed.unwrap();
        assert_eq!(unpacked(&packed).unwrap(), b"hello from xz, hello from xz, hello from xz");
        assert!(unpacked(&packed[..packed.len() - 40]).is_err());
        packed[52] ^= 1; // in the check
        assert!(unpacked(&packed).is_err());
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let mut lz4 = LZ4_LEGACY.to_vec();
        lz4.extend(u32::MAX.to_le_bytes());
        assert!(unpacked(&lz4).is_err());
        lz4.truncate(4);
        lz4.extend([9, 0, 0, 0, 1, 2]);
        assert!(unpacked(&lz4).is_err());
        assert!(unpacked(b"\xfd7zXZ\0garbage").is_err());
    }

    #[test]
    fn nothing_and_little_are_themselves() {
        assert_eq!(unpacked(b"").unwrap(), b"");
        assert_eq!(unpacked(b"abc").unwrap(), b"abc");
    }
}
