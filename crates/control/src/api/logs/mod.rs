//! Amazon CloudWatch Logs over the built-in log store.
//!
//! Shapes and limits of single members are checked before a handler sees its input
//! (`aws_api::validate`); a handler checks what the model cannot say.

mod group;

pub mod create_log_group;
pub mod create_log_stream;
pub mod delete_log_group;
pub mod delete_log_stream;
pub mod delete_retention_policy;
pub mod describe_log_groups;
pub mod describe_log_streams;
pub mod filter_log_events;
pub mod get_log_events;
pub mod list_log_groups;
pub mod list_tags_for_resource;
pub mod list_tags_log_group;
pub mod put_log_events;
pub mod put_retention_policy;
pub mod start_live_tail;
pub mod tag_log_group;
pub mod tag_resource;
pub mod test_metric_filter;
pub mod untag_log_group;
pub mod untag_resource;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use aws_api::logs::{error, operation};
use aws_api::{Error, Operation, Routed, eventstream};
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, header};

use crate::api::{Answer, Caller, answer::serve};
use crate::clock::Clock;
use crate::telemetry::filter::{FilterPattern, PatternError};
use crate::telemetry::logs::{LogError, LogStore};

/// What CloudWatch Logs handlers work with.
#[derive(Clone, Debug)]
pub struct Logs {
    pub store: LogStore,
    pub clock: Clock,
}

/// Serves a request for CloudWatch Logs.
///
/// # Errors
/// The operation's own, and the protocol's for an operation that is not served.
pub async fn dispatch(logs: &Logs, caller: &Caller, routed: &Routed, body: &[u8]) -> Result<Answer, Error> {
    if routed.operation.name == operation::StartLiveTail::NAME {
        let input = routed.decode::<operation::StartLiveTail>(body)?;
        let stream = start_live_tail::handle(logs, caller, input).await?;
        let mut response = Response::new(Body::new(stream));
        let content_type = HeaderValue::from_static(eventstream::CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        return Ok(Answer::Stream(response));
    }
    serve!(aws_api::logs::operation, logs, caller, routed, body, {
        CreateLogGroup => create_log_group,
        CreateLogStream => create_log_stream,
        DeleteLogGroup => delete_log_group,
        DeleteLogStream => delete_log_stream,
        DeleteRetentionPolicy => delete_retention_policy,
        DescribeLogGroups => describe_log_groups,
        DescribeLogStreams => describe_log_streams,
        FilterLogEvents => filter_log_events,
        GetLogEvents => get_log_events,
        ListLogGroups => list_log_groups,
        ListTagsForResource => list_tags_for_resource,
        ListTagsLogGroup => list_tags_log_group,
        PutLogEvents => put_log_events,
        PutRetentionPolicy => put_retention_policy,
        TagLogGroup => tag_log_group,
        TagResource => tag_resource,
        TestMetricFilter => test_metric_filter,
        UntagLogGroup => untag_log_group,
        UntagResource => untag_resource,
    })
}

/// The sequence token in answers. "The sequence token is now ignored" (`PutLogEvents`), but older
/// clients expect one to be there.
const SEQUENCE_TOKEN: &str = "49039859624765402286354361372889866234987867545698342386";

/// What the service answers for an error of the store.
fn refusal(failure: LogError) -> Error {
    let text = failure.to_string();
    match failure {
        LogError::GroupNotFound | LogError::StreamNotFound => error::resource_not_found_exception(text),
        LogError::GroupExists | LogError::StreamExists => error::resource_already_exists_exception(text),
        LogError::InvalidToken | LogError::InvalidParameter(_) => error::invalid_parameter_exception(text),
        LogError::TooManyTags => error::too_many_tags_exception(text),
        LogError::DeletionProtected => error::validation_exception(text),
        LogError::TooManySessions => error::limit_exceeded_exception(text),
        LogError::DiskFull => error::service_unavailable_exception(
            "The disk of the log store is full: free some space, or shorten the retention of log groups.",
        ),
        LogError::Storage(_) | LogError::Open(_) | LogError::Corrupt(_) | LogError::Stopped => {
            tracing::error!(error = &failure as &dyn std::error::Error, "log store request failed");
            error::service_unavailable_exception("The log store is not available; see the server's log.")
        }
    }
}

fn invalid(message: impl Into<String>) -> Error {
    error::invalid_parameter_exception(message)
}

fn pattern(source: Option<&str>) -> Result<Arc<FilterPattern>, Error> {
    let parsed = FilterPattern::parse(source.unwrap_or_default());
    parsed.map(Arc::new).map_err(|refused: PatternError| invalid(refused.to_string()))
}

/// A page size: what was asked for, or `default`. The model bounds it.
fn page_size(limit: Option<i32>, default: usize) -> usize {
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(default)
}
