//! Spans and points in time as people write and read them.

use anyhow::{Context, bail};
use chrono::DateTime;

/// Milliseconds in `90s`, `10m`, `1h30m`, `2d`.
pub fn parse_span(text: &str) -> anyhow::Result<i64> {
    let wrong = || format!("'{text}' is no span of time; write it as 90s, 10m, 1h30m or 2d");
    let mut rest = text;
    let mut total: i64 = 0;
    if rest.is_empty() {
        bail!(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).with_context(wrong)?;
        let number: i64 = rest[..digits].parse().with_context(wrong)?;
        let unit = rest[digits..].chars().next().with_context(wrong)?;
        let millis = match unit {
            's' => 1_000,
            'm' => 60_000,
            'h' => 3_600_000,
            'd' => 86_400_000,
            _ => bail!(wrong()),
        };
        total = number.checked_mul(millis).and_then(|span| total.checked_add(span)).with_context(wrong)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    Ok(total)
}

/// Milliseconds since the Unix epoch, of a time (RFC 3339) or of a span before `now`.
pub fn parse_since(text: &str, now: i64) -> anyhow::Result<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_millis());
    }
    let span = parse_span(text).map_err(|_| {
        anyhow::anyhow!(
            "'{text}' is neither a span of time (10m, 1h30m, 2d) nor a time (2026-01-31T12:00:00Z)"
        )
    })?;
    Ok(now.saturating_sub(span))
}

/// A span in one unit: `12s`, `5m`, `3h`, `2d`.
pub fn age(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Milliseconds since the Unix epoch.
pub fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_sums_of_units() {
        assert_eq!(parse_span("90s").unwrap(), 90_000);
        assert_eq!(parse_span("1h30m").unwrap(), 5_400_000);
        assert_eq!(parse_span("2d").unwrap(), 172_800_000);
        for bad in
            ["", "10", "m", "-1s", "1 m", "1w", "5mx", "99999999999999999999s", "9223372036854775807d", "1é"]
        {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn since_is_a_time_or_a_span() {
        assert_eq!(parse_since("1970-01-01T00:01:00Z", 0).unwrap(), 60_000);
        assert_eq!(parse_since("10s", 60_000).unwrap(), 50_000);
        assert!(parse_since("yesterday", 0).is_err());
    }

    #[test]
    fn ages_have_one_unit() {
        let ages = [-5, 59_999, 60_000, 3_600_000, 200_000_000].map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "1h", "2d"]);
    }
}
