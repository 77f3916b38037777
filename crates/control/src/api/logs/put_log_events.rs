//! `PutLogEvents`: stores events in a stream.

use aws_api::Error;
use aws_api::logs::{PutLogEventsRequest, PutLogEventsResponse, RejectedLogEventsInfo};

use super::{Logs, SEQUENCE_TOKEN, refusal};
use crate::api::Caller;
use crate::telemetry::logs::{Event, limits};

/// Serves `PutLogEvents`.
///
/// # Errors
/// `ResourceNotFoundException`; `InvalidParameterException` for a batch outside of the limits. Events
/// whose time is not acceptable are reported in the answer.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: PutLogEventsRequest,
) -> Result<PutLogEventsResponse, Error> {
    let scope = caller.scope();
    let group = logs.store.group(&scope, &input.log_group_name).await.map_err(refusal)?;
    let events = input.log_events.into_iter();
    let mut events: Vec<_> =
        events.map(|event| Event { timestamp: event.timestamp, message: event.message }).collect();
    let now = logs.clock.now().millis();
    let accepted = limits::check_batch(&events, group.retention_days, now).map_err(refusal)?;
    let rejected = rejected(&accepted);
    events.truncate(accepted.events.end);
    events.drain(..accepted.events.start);
    let stored = logs.store.append(&scope, &input.log_group_name, &input.log_stream_name, events, None).await;
    stored.map_err(refusal)?;
    Ok(PutLogEventsResponse {
        next_sequence_token: Some(SEQUENCE_TOKEN.to_owned()),
        rejected_log_events_info: rejected,
        rejected_entity_info: None,
    })
}

fn rejected(accepted: &limits::Accepted) -> Option<RejectedLogEventsInfo> {
    let index = |index: Option<usize>| index.and_then(|index| i32::try_from(index).ok());
    let info = RejectedLogEventsInfo {
        too_new_log_event_start_index: index(accepted.too_new_start),
        too_old_log_event_end_index: index(accepted.too_old_end),
        expired_log_event_end_index: index(accepted.expired_end),
    };
    (info != RejectedLogEventsInfo::default()).then_some(info)
}
