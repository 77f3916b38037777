//! `TestMetricFilter`: tries a filter pattern on messages.

use aws_api::Error;
use aws_api::logs::{MetricFilterMatchRecord, TestMetricFilterRequest, TestMetricFilterResponse};

use super::{Logs, pattern};
use crate::api::Caller;

/// Serves `TestMetricFilter`.
///
/// # Errors
/// `InvalidParameterException` for the pattern.
pub async fn handle(
    _logs: &Logs,
    _caller: &Caller,
    input: TestMetricFilterRequest,
) -> Result<TestMetricFilterResponse, Error> {
    let pattern = pattern(Some(&input.filter_pattern))?;
    let matches = (1_i64..).zip(input.log_event_messages).filter_map(|(number, message)| {
        let values = pattern.extract(&message)?;
        Some(MetricFilterMatchRecord {
            event_number: Some(number),
            event_message: Some(message),
            extracted_values: Some(values.into_iter().collect()),
        })
    });
    Ok(TestMetricFilterResponse { matches: Some(matches.collect()) })
}
