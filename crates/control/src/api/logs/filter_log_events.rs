//! `FilterLogEvents`: searches the streams of a group.

use aws_api::Error;
use aws_api::logs::{FilterLogEventsRequest, FilterLogEventsResponse, FilteredLogEvent};

use super::{Logs, group, invalid, page_size, pattern, refusal};
use crate::api::Caller;
use crate::telemetry::logs::{FilterQuery, PAGE_EVENTS};

/// Serves `FilterLogEvents`.
///
/// # Errors
/// `ResourceNotFoundException`, also for a stream that is named; `InvalidParameterException` for the
/// filter pattern, for parameters that exclude each other, and for a made-up token.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: FilterLogEventsRequest,
) -> Result<FilterLogEventsResponse, Error> {
    let name = group::either(caller, input.log_group_name.as_deref(), input.log_group_identifier.as_deref())?;
    if input.log_stream_names.is_some() && input.log_stream_name_prefix.is_some() {
        return Err(invalid("LogStreamNames and LogStreamNamePrefix are mutually exclusive parameters."));
    }
    let pattern = pattern(input.filter_pattern.as_deref())?;
    let query = FilterQuery {
        streams: input.log_stream_names.unwrap_or_default(),
        prefix: input.log_stream_name_prefix.unwrap_or_default(),
        start: input.start_time,
        end: input.end_time,
        token: input.next_token,
        limit: page_size(input.limit, PAGE_EVENTS),
    };
    let page = logs.store.filter(&caller.scope(), &name, query, pattern).await.map_err(refusal)?;
    let events = page.events.into_iter().map(|found| FilteredLogEvent {
        log_stream_name: Some(found.stream.to_string()),
        timestamp: Some(found.event.timestamp),
        message: Some(found.event.message),
        ingestion_time: Some(found.event.ingested_at),
        event_id: Some(found.event.id),
    });
    Ok(FilterLogEventsResponse {
        events: Some(events.collect()),
        // "This parameter has been deprecated … the list is empty".
        searched_log_streams: Some(Vec::new()),
        next_token: page.next_token,
    })
}
