//! The parts of tar headers that are text: PAX records, and the numbers of the fixed fields.

use super::tar::{Segment, TarError, Time, malformed};

/// What a PAX extended header says about the entry after it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    /// Name and value, from `SCHILY.xattr.<name>`.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    /// The map of the 0.0 and 0.1 forms.
    pub(super) sparse_map: Vec<Segment>,
    /// The 1.0 form: the map is in front of the data.
    pub(super) sparse_map_in_data: bool,
    sparse: bool,
    /// An offset of the 0.0 form that waits for its length.
    pending_offset: Option<u64>,
}

impl Pax {
    pub(super) fn is_sparse(&self) -> bool {
        self.sparse
    }

    /// Reads records of the form `<length> <key>=<value>\n`, where the length counts the whole record.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, TarError> {
        let mut pax = Self::default();
        while !data.is_empty() {
            // Some writers pad with NUL.
            if data.iter().all(|b| *b == 0) {
                break;
            }
            let space = data.iter().take(12).position(|b| *b == b' ').ok_or_else(bad_record)?;
            let length = usize::try_from(decimal(&data[..space])?).map_err(|_| bad_record())?;
            let record = data.get(space + 1..length).ok_or_else(bad_record)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad_record)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad_record)?;
            pax.record(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        if pax.pending_offset.is_some() {
            return Err(bad_record());
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes the record back (POSIX pax).
        if value.is_empty() {
            return Ok(());
        }
        let id =
            || u32::try_from(decimal(value)?).map_err(|_| malformed("owner in a PAX header is too large"));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.linkpath = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(id()?),
            b"gid" => self.gid = Some(id()?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => {
                self.sparse = true;
                self.sparse_map_in_data = decimal(value)? == 1;
            }
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse = true;
                self.sparse_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" => {
                let unused = self.pending_offset.replace(decimal(value)?);
                unused.map_or(Ok(()), |_| Err(bad_record()))?;
            }
            b"GNU.sparse.numbytes" => {
                let offset = self.pending_offset.take().ok_or_else(bad_record)?;
                self.sparse_map.push(Segment { offset, length: decimal(value)? });
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|b| *b == b',').map(decimal).collect::<Result<Vec<_>, _>>()?;
                if !numbers.len().is_multiple_of(2) {
                    return Err(bad_record());
                }
                self.sparse_map = numbers
                    .chunks_exact(2)
                    .map(|pair| Segment { offset: pair[0], length: pair[1] })
                    .collect();
            }
            _ => {}
        }
        Ok(())
    }
}

fn bad_record() -> TarError {
    malformed("invalid PAX record")
}

/// Decimal digits only.
fn decimal(text: &[u8]) -> Result<u64, TarError> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(bad_record());
    }
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or_else(bad_record)
}

/// `[-]seconds[.fraction]`.
fn time(text: &[u8]) -> Result<Time, TarError> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = i64::try_from(decimal(parts.next().unwrap_or_default())?).map_err(|_| bad_record())?;
    let mut nanoseconds: u32 = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(bad_record());
        }
        for index in 0..9 {
            nanoseconds = nanoseconds * 10 + u32::from(fraction.get(index).map_or(0, |d| d - b'0'));
        }
    }
    Ok(match (negative, nanoseconds) {
        (false, nanoseconds) => Time { seconds: whole, nanoseconds },
        (true, 0) => Time { seconds: -whole, nanoseconds: 0 },
        (true, nanoseconds) => Time { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// A number of a fixed field: octal text, or big-endian two's complement when the first bit is set (GNU's base-256).
pub(super) fn signed_number(field: &[u8]) -> Result<i64, TarError> {
    let bad = || malformed("invalid number in a tar header");
    let first = *field.first().ok_or_else(bad)?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            // The first bit is the marker, the second one the sign.
            let byte = match (index, negative) {
                (0, false) => byte & 0x7f,
                _ => *byte,
            };
            value = value.checked_mul(256).ok_or_else(bad)? | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(text.len());
    // What follows the terminator is of no meaning: old writers left rests of former numbers there.
    let digits = &text[..end];
    if !digits.iter().all(|b| matches!(b, b'0'..=b'7')) {
        return Err(bad());
    }
    digits.iter().try_fold(0_i64, |value, digit| {
        value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or_else(bad)
    })
}
