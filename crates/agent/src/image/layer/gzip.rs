//! Gzip (RFC 1952) without its CRC: the layer's digests say more, and the CRC costs a tenth of the decompression.

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};

const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const HEADER_CRC: u8 = 1 << 1;
const RESERVED: u8 = 0b1110_0000;

/// Decompresses all members of `input`, one after the other.
pub(super) struct GzipReader<R> {
    input: R,
    inflate: Decompress,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// At a member's header; `first` when there must be one.
    Header {
        first: bool,
    },
    Body,
    End,
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, inflate: Decompress::new(false), state: State::Header { first: true } }
    }

    /// Reads a header; `false` at the end of the input, where one may be missing.
    fn header(&mut self, first: bool) -> io::Result<bool> {
        if !first && self.input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut fixed = [0; 10];
        self.input.read_exact(&mut fixed)?;
        let flags = fixed[3];
        if fixed[..3] != [0x1f, 0x8b, 8] || flags & RESERVED != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "invalid gzip header"));
        }
        if flags & EXTRA != 0 {
            let mut length = [0; 2];
            self.input.read_exact(&mut length)?;
            self.skip(usize::from(u16::from_le_bytes(length)))?;
        }
        for text in [NAME, COMMENT] {
            if flags & text != 0 {
                self.skip_text()?;
            }
        }
        if flags & HEADER_CRC != 0 {
            self.skip(2)?;
        }
        Ok(true)
    }

    fn skip(&mut self, mut amount: usize) -> io::Result<()> {
        while amount > 0 {
            let step = self.input.fill_buf()?.len().min(amount);
            if step == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.input.consume(step);
            amount -= step;
        }
        Ok(())
    }

    /// Skips text up to its NUL, however long: it is not kept.
    fn skip_text(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match buffer.iter().position(|b| *b == 0) {
                Some(end) => {
                    self.input.consume(end + 1);
                    return Ok(());
                }
                None => {
                    let length = buffer.len();
                    self.input.consume(length);
                }
            }
        }
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if output.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::Header { first } => {
                    self.state = if self.header(first)? { State::Body } else { State::End };
                }
                State::End => return Ok(0),
                State::Body => {
                    let input = self.input.fill_buf()?;
                    let ended = input.is_empty();
                    let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
                    let status = self
                        .inflate
                        .decompress(input, output, FlushDecompress::None)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    // Both are at most the lengths of the buffers.
                    let consumed = (self.inflate.total_in() - before_in) as usize;
                    let produced = (self.inflate.total_out() - before_out) as usize;
                    self.input.consume(consumed);
                    if status == Status::StreamEnd {
                        self.inflate.reset(false);
                        // CRC and length.
                        self.skip(8)?;
                        self.state = State::Header { first: false };
                    } else if ended && produced == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if produced > 0 {
                        return Ok(produced);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // A byte at a time, for every boundary to fall somewhere bad.
        GzipReader::new(io::BufReader::with_capacity(1, bytes)).read_to_end(&mut out)?;
        Ok(out)
    }

    fn member(data: &[u8], builder: flate2::GzBuilder) -> Vec<u8> {
        let mut encoder = builder.write(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn reads_members_with_every_header_field() {
        let full = flate2::GzBuilder::new().filename("name").comment("comment").extra(vec![7; 300]);
        let first = member(b"first ", full);
        let second = member(&b"second".repeat(1000), flate2::GzBuilder::new());
        let empty = member(b"", flate2::GzBuilder::new());
        let whole = [first.clone(), empty, second].concat();
        assert_eq!(read(&whole).unwrap(), [b"first ".to_vec(), b"second".repeat(1000)].concat());
        for length in 0..whole.len() {
            // Every cut is seen, but for those between members.
            match read(&whole[..length]) {
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}"),
                Ok(data) => assert_eq!(data, b"first ", "{length}"),
            }
        }
        let trailing = [first, b"garbage after".to_vec()].concat();
        assert_eq!(read(&trailing).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
