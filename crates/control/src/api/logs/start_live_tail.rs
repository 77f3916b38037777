//! `StartLiveTail`: streams events as they are stored.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use aws_api::Error;
use aws_api::eventstream::Message;
use aws_api::logs::{
    LiveTailSessionLogEvent, LiveTailSessionMetadata, LiveTailSessionStart, LiveTailSessionUpdate,
    StartLiveTailRequest, StartLiveTailResponseStream, error,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Logs, group, invalid, refusal};
use crate::api::Caller;
use crate::random;
use crate::telemetry::filter::FilterPattern;
use crate::telemetry::logs::{TailFilter, TailSession, TailUpdate};

/// Time between updates, and after which a session ends (`StartLiveTail` in the API reference).
const PERIOD: Duration = Duration::from_secs(1);
const LIFETIME: Duration = Duration::from_secs(3 * 60 * 60);

/// The response's body, of the type [`aws_api::eventstream::CONTENT_TYPE`]. Dropping it, as the server
/// does when the client hangs up, ends the session.
pub type Body = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

/// Serves `StartLiveTail`.
///
/// # Errors
/// Before the stream begins: `ResourceNotFoundException`, `LimitExceededException`, and
/// `InvalidParameterException` for the filter pattern and for parameters that exclude each other.
pub async fn handle(logs: &Logs, caller: &Caller, input: StartLiveTailRequest) -> Result<Body, Error> {
    let messages = messages(logs, caller, input).await?;
    let frames = messages.filter_map(|message| async move {
        match message.encode() {
            Ok(bytes) => Some(Ok(Frame::data(bytes))),
            // A session's buffer is smaller than the largest message by far.
            Err(failure) => {
                tracing::error!(error = &failure as &dyn std::error::Error, "live tail update dropped");
                None
            }
        }
    });
    let frames: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(frames);
    Ok(StreamBody::new(frames))
}

/// Opens the session; what it says comes as a stream of messages.
async fn messages(
    logs: &Logs,
    caller: &Caller,
    input: StartLiveTailRequest,
) -> Result<impl Stream<Item = Message> + Send + 'static, Error> {
    let streams = input.log_stream_names.clone().unwrap_or_default();
    let prefixes = input.log_stream_name_prefixes.clone().unwrap_or_default();
    if !streams.is_empty() && !prefixes.is_empty() {
        return Err(invalid("LogStreamNames and LogStreamNamePrefixes are mutually exclusive parameters."));
    }
    if input.log_group_identifiers.len() > 1 && !(streams.is_empty() && prefixes.is_empty()) {
        return Err(invalid(
            "LogStreamNames and LogStreamNamePrefixes can be given for a single log group only.",
        ));
    }
    let names = input.log_group_identifiers.iter().map(|identifier| group::name_of(caller, identifier));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let source = input.log_event_filter_pattern.clone().unwrap_or_default();
    let pattern = FilterPattern::parse(&source).map_err(|refused| invalid(refused.to_string()))?;
    let filter = TailFilter { streams, prefixes, pattern };
    let session = logs.store.subscribe(&caller.scope(), &names, filter).await.map_err(refusal)?;

    let start = StartLiveTailResponseStream::SessionStart(LiveTailSessionStart {
        request_id: Some(caller.request_id.clone()),
        session_id: Some(random::uuid()),
        log_group_identifiers: Some(input.log_group_identifiers),
        // Clients iterate over these without asking whether they are there.
        log_stream_names: Some(input.log_stream_names.unwrap_or_default()),
        log_stream_name_prefixes: Some(input.log_stream_name_prefixes.unwrap_or_default()),
        log_event_filter_pattern: Some(source),
    });
    let opening = [Message::initial_response(), event(&start)];
    let account = caller.account.to_string();
    Ok(stream::iter(opening).chain(updates(session, account)))
}

/// An update each second, and at last the timeout.
fn updates(session: TailSession, account: String) -> impl Stream<Item = Message> + Send {
    let begin = Instant::now();
    let mut ticks = tokio::time::interval_at(begin + PERIOD, PERIOD);
    // A client that reads slowly gets its updates late, not in a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold(Some((session, ticks)), move |state| {
        let account = account.clone();
        async move {
            let (session, mut ticks) = state?;
            let now = ticks.tick().await;
            if now.duration_since(begin) >= LIFETIME {
                let timeout =
                    error::session_timeout_exception("The Live Tail session timed out after 3 hours.");
                return Some((Message::exception(&timeout), None));
            }
            let update = update(&account, session.update());
            Some((event(&update), Some((session, ticks))))
        }
    })
}

fn update(account: &str, update: TailUpdate) -> StartLiveTailResponseStream {
    let results = update.events.into_iter().map(|event| LiveTailSessionLogEvent {
        log_stream_name: Some(event.stream.to_string()),
        log_group_identifier: Some(format!("{account}:{}", event.group)),
        message: Some(event.message),
        timestamp: Some(event.timestamp),
        ingestion_time: Some(event.ingested_at),
    });
    StartLiveTailResponseStream::SessionUpdate(LiveTailSessionUpdate {
        session_results: Some(results.collect()),
        session_metadata: Some(LiveTailSessionMetadata { sampled: Some(update.sampled) }),
    })
}

fn event(event: &StartLiveTailResponseStream) -> Message {
    Message::event(event).unwrap_or_else(|failure| {
        tracing::error!(error = &failure as &dyn std::error::Error, "live tail event not encoded");
        Message::exception(&error::session_streaming_exception("The session failed."))
    })
}
