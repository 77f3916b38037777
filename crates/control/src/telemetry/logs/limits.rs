//! What `PutLogEvents` accepts.
//!
//! Source: `PutLogEvents` in the CloudWatch Logs API reference, and the service's error texts.

use std::ops::Range;

use super::record::billed_size;
use super::{DAY_MS, Event, LogError};

/// Events in one batch.
pub const MAX_BATCH_EVENTS: usize = 10_000;

/// Bytes of one batch: messages in UTF-8 and 26 an event.
pub const MAX_BATCH_BYTES: u64 = 1_048_576;

/// Bytes of one event, counted in the same way.
pub const MAX_EVENT_BYTES: u64 = 1_048_576;

/// Longest time between the first and the last event of a batch.
const MAX_SPAN_MS: i64 = DAY_MS;

const MAX_AGE_MS: i64 = 14 * DAY_MS;
const MAX_AHEAD_MS: i64 = 2 * 60 * 60 * 1000;

/// Retention periods, in days (`PutRetentionPolicy` in the API reference).
pub const RETENTION_DAYS: [u32; 22] =
    [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653];

/// Which events of a batch are to be stored, and which are refused by their time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Indices of the events to store.
    pub events: Range<usize>,
    /// Events before this index are older than 14 days.
    pub too_old_end: Option<usize>,
    /// Events before this index are older than the group's retention period.
    pub expired_end: Option<usize>,
    /// Events from this index on are more than 2 hours in the future.
    pub too_new_start: Option<usize>,
}

/// Holds a batch against the service's limits.
///
/// # Errors
/// `InvalidParameter` when the whole batch is refused; events with unacceptable times are reported in
/// the result instead.
pub fn check_batch(events: &[Event], retention_days: Option<u32>, now: i64) -> Result<Accepted, LogError> {
    let invalid = |text: String| Err(LogError::InvalidParameter(text));
    if events.len() > MAX_BATCH_EVENTS {
        return invalid(format!(
            "Upload too large: {} events exceeds limit of {MAX_BATCH_EVENTS}",
            events.len()
        ));
    }
    for event in events {
        if event.message.is_empty() {
            return invalid("Log event messages must not be empty.".to_owned());
        }
        check_message(&event.message)?;
    }
    let total: u64 = events.iter().map(|event| billed_size(event.message.len())).sum();
    if total > MAX_BATCH_BYTES {
        return invalid(format!("Upload too large: {total} bytes exceeds limit of {MAX_BATCH_BYTES}"));
    }
    if !events.is_sorted_by_key(|event| event.timestamp) {
        return invalid(
            "Log events in a single PutLogEvents request must be in chronological order.".to_owned(),
        );
    }

    let before = |time: i64| events.partition_point(|event| event.timestamp < time);
    let too_old = before(now.saturating_sub(MAX_AGE_MS));
    let retention = retention_days.map(|days| i64::from(days).saturating_mul(DAY_MS));
    let expired = retention.map_or(0, |period| before(now.saturating_sub(period)));
    let new = before(now.saturating_add(MAX_AHEAD_MS).saturating_add(1));
    let valid = too_old.max(expired)..new;
    if let [first, .., last] = events.get(valid.clone()).unwrap_or_default()
        && last.timestamp - first.timestamp > MAX_SPAN_MS
    {
        return invalid(
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
                .to_owned(),
        );
    }
    Ok(Accepted {
        events: valid,
        too_old_end: Some(too_old).filter(|end| *end > 0),
        expired_end: Some(expired).filter(|end| *end > 0),
        too_new_start: Some(new).filter(|start| *start < events.len()),
    })
}

/// Checks a group's name (`LogGroupName` in the service model).
///
/// # Errors
/// `InvalidParameter`.
pub fn check_group_name(name: &str) -> Result<(), LogError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_/#".contains(&b);
    if (1..=512).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(LogError::InvalidParameter(format!(
        "{name:?} is not a log group name: 1 to 512 letters, digits and . - _ / #."
    )))
}

/// Checks a stream's name (`LogStreamName` in the service model).
///
/// # Errors
/// `InvalidParameter`.
pub fn check_stream_name(name: &str) -> Result<(), LogError> {
    if (1..=512).contains(&name.chars().count()) && !name.contains([':', '*']) {
        return Ok(());
    }
    Err(LogError::InvalidParameter(format!(
        "{name:?} is not a log stream name: 1 to 512 characters without : and *."
    )))
}

pub(super) fn check_message(message: &str) -> Result<(), LogError> {
    let size = billed_size(message.len());
    if size > MAX_EVENT_BYTES {
        return Err(LogError::InvalidParameter(format!(
            "Log event too large: {size} bytes exceeds limit of {MAX_EVENT_BYTES}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;
    const HOUR: i64 = 3_600_000;

    fn events(offsets: &[i64]) -> Vec<Event> {
        offsets.iter().map(|o| Event { timestamp: NOW + o, message: "m".to_owned() }).collect()
    }

    fn refusal(events: &[Event]) -> String {
        check_batch(events, None, NOW).expect_err("refused").to_string()
    }

    #[test]
    fn times_outside_the_window_are_reported_by_index() {
        let batch = events(&[-15 * DAY_MS, -14 * DAY_MS - 1, -3 * DAY_MS, -HOUR, 0, 2 * HOUR, 2 * HOUR + 1]);
        let accepted = check_batch(&batch, Some(1), NOW).expect("accepted");
        assert_eq!(
            accepted,
            Accepted { events: 3..6, too_old_end: Some(2), expired_end: Some(3), too_new_start: Some(6) }
        );
        let fine = check_batch(&events(&[0, 0, 1]), None, NOW).expect("accepted");
        assert_eq!(
            fine,
            Accepted { events: 0..3, too_old_end: None, expired_end: None, too_new_start: None }
        );
        let all_new = check_batch(&events(&[3 * HOUR]), None, NOW).expect("accepted");
        assert_eq!((all_new.events, all_new.too_new_start), (0..0, Some(0)));
    }

    #[test]
    fn names_are_those_of_the_service() {
        for good in ["a", "/ecs/web-1_2.3#4", &"x".repeat(512)] {
            assert!(check_group_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a:b", "ä", "a\0", &"x".repeat(513)] {
            assert!(check_group_name(bad).is_err(), "{bad}");
        }
        assert!(check_stream_name("web/app/0123 ä").is_ok());
        for bad in ["", "a:b", "a*", &"ä".repeat(513)] {
            assert!(check_stream_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whole_batches_are_refused_in_the_services_words() {
        assert!(refusal(&events(&[1, 0])).ends_with("must be in chronological order."));
        assert!(refusal(&events(&[-DAY_MS - 1, 0])).ends_with("cannot span more than 24 hours."));
        assert!(check_batch(&events(&[-DAY_MS, 0]), None, NOW).is_ok());
        assert!(refusal(&events(&vec![0; 10_001])).starts_with("Upload too large"));
        let big = |bytes: usize| vec![Event { timestamp: NOW, message: "x".repeat(bytes) }];
        assert!(check_batch(&big(1_048_576 - 26), None, NOW).is_ok());
        assert_eq!(
            refusal(&big(1_048_576 - 25)),
            "Log event too large: 1048577 bytes exceeds limit of 1048576"
        );
        let halves = [big(524_288), big(524_288)].concat();
        assert_eq!(refusal(&halves), "Upload too large: 1048628 bytes exceeds limit of 1048576");
    }
}
