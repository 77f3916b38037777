//! `GetLogEvents`: reads one stream.

use aws_api::Error;
use aws_api::logs::{GetLogEventsRequest, GetLogEventsResponse, OutputLogEvent};

use super::{Logs, group, page_size, refusal};
use crate::api::Caller;
use crate::telemetry::logs::{GetQuery, PAGE_EVENTS};

/// Serves `GetLogEvents`.
///
/// # Errors
/// `ResourceNotFoundException`; `InvalidParameterException` for a made-up token.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: GetLogEventsRequest,
) -> Result<GetLogEventsResponse, Error> {
    let name = group::either(caller, input.log_group_name.as_deref(), input.log_group_identifier.as_deref())?;
    let query = GetQuery {
        start: input.start_time,
        end: input.end_time,
        from_head: input.start_from_head.unwrap_or_default(),
        token: input.next_token,
        limit: page_size(input.limit, PAGE_EVENTS),
    };
    let page =
        logs.store.get(&caller.scope(), &name, &input.log_stream_name, query).await.map_err(refusal)?;
    let events = page.events.into_iter().map(|event| OutputLogEvent {
        timestamp: Some(event.timestamp),
        message: Some(event.message),
        ingestion_time: Some(event.ingested_at),
    });
    Ok(GetLogEventsResponse {
        events: Some(events.collect()),
        next_forward_token: Some(page.next_forward),
        next_backward_token: Some(page.next_backward),
    })
}
