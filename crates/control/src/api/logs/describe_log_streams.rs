//! `DescribeLogStreams`: lists the streams of a group.

use aws_api::Error;
use aws_api::logs::{DescribeLogStreamsRequest, DescribeLogStreamsResponse, LogStream};

use super::{Logs, SEQUENCE_TOKEN, group, invalid, page_size, refusal};
use crate::api::Caller;
use crate::telemetry::logs::{StreamOrder, StreamQuery};

/// Serves `DescribeLogStreams`.
///
/// # Errors
/// `ResourceNotFoundException`; `InvalidParameterException` for parameters that exclude each other, and
/// for a made-up token.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: DescribeLogStreamsRequest,
) -> Result<DescribeLogStreamsResponse, Error> {
    let name = group::either(caller, input.log_group_name.as_deref(), input.log_group_identifier.as_deref())?;
    let order = match input.order_by.as_deref() {
        Some("LastEventTime") if input.log_stream_name_prefix.is_some() => {
            return Err(invalid("Cannot order by LastEventTime with a logStreamNamePrefix."));
        }
        Some("LastEventTime") => StreamOrder::LastEventTime,
        _ => StreamOrder::Name,
    };
    let query = StreamQuery {
        prefix: input.log_stream_name_prefix.unwrap_or_default(),
        order,
        descending: input.descending.unwrap_or_default(),
        token: input.next_token,
        limit: page_size(input.limit, 50),
    };
    let page = logs.store.describe_streams(&caller.scope(), &name, query).await.map_err(refusal)?;
    let arn = group::arn(caller, &name);
    let streams = page.streams.into_iter().map(|stream| LogStream {
        arn: Some(format!("{arn}:log-stream:{}", stream.name)),
        log_stream_name: Some(stream.name),
        creation_time: Some(stream.created_at),
        first_event_timestamp: stream.first_event_at,
        last_event_timestamp: stream.last_event_at,
        last_ingestion_time: stream.last_ingested_at,
        upload_sequence_token: stream.last_event_at.map(|_| SEQUENCE_TOKEN.to_owned()),
        // "Starting on June 17, 2019, this parameter will be … reported as zero".
        stored_bytes: Some(0),
    });
    Ok(DescribeLogStreamsResponse { log_streams: Some(streams.collect()), next_token: page.next_token })
}
