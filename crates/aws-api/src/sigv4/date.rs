//! Times as signatures write them.

use chrono::{DateTime, NaiveDateTime};

use crate::Timestamp;

/// `20150830T123600Z` (ISO 8601 basic format).
pub fn format(time: Timestamp) -> String {
    let seconds = time.as_millis().div_euclid(1000);
    DateTime::from_timestamp(seconds, 0).unwrap_or_default().format("%Y%m%dT%H%M%SZ").to_string()
}

/// Reads ISO 8601's basic format and nothing else.
pub fn parse(text: &str) -> Option<Timestamp> {
    let shaped = text.len() == 16
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !shaped {
        return None;
    }
    let time = NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%SZ").ok()?;
    Some(Timestamp::from_millis(time.and_utc().timestamp_millis()))
}

/// Reads an HTTP `Date` header (RFC 9110 §5.6.7), in its current form.
pub fn parse_http(text: &str) -> Option<Timestamp> {
    let time = DateTime::parse_from_rfc2822(text).ok()?;
    Some(Timestamp::from_millis(time.timestamp_millis()))
}
