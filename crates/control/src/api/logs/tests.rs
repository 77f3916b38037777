use std::time::Duration;

use aws_api::eventstream::{Decoder, Event as _};
use aws_api::logs::{
    CreateLogGroupRequest, CreateLogStreamRequest, DeleteLogGroupRequest, DescribeLogGroupsRequest,
    DescribeLogStreamsRequest, FilterLogEventsRequest, GetLogEventsRequest, InputLogEvent,
    ListLogGroupsRequest, ListTagsForResourceRequest, PutLogEventsRequest, PutRetentionPolicyRequest,
    StartLiveTailRequest, StartLiveTailResponseStream, TagResourceRequest, TestMetricFilterRequest,
    UntagResourceRequest,
};
use http_body_util::BodyExt;
use model::{AccountId, Region, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::api::Caller;
use crate::telemetry::logs::TailFilter;

const NOW: i64 = 1_700_000_000_000;
const DAY: i64 = 86_400_000;

struct Fixture {
    logs: Logs,
    caller: Caller,
    _dir: TempDir,
}

impl Fixture {
    /// With a group `g` and a stream `s`.
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("logs-api-").tempdir().expect("directory");
        let clock = Clock::manual(Timestamp(NOW));
        let logs = Logs { store: LogStore::open(dir.path(), clock.clone()).expect("open"), clock };
        let caller = Caller {
            account: AccountId::parse("123456789012").expect("account"),
            region: Region::parse("eu-central-1").expect("region"),
            principal_arn: "arn:aws:iam::123456789012:root".into(),
            request_id: "request".into(),
        };
        let f = Self { logs, caller, _dir: dir };
        let group = CreateLogGroupRequest { log_group_name: "g".into(), ..Default::default() };
        create_log_group::handle(&f.logs, &f.caller, group).await.expect("group");
        let stream = CreateLogStreamRequest { log_group_name: "g".into(), log_stream_name: "s".into() };
        create_log_stream::handle(&f.logs, &f.caller, stream).await.expect("stream");
        f
    }

    async fn put(&self, events: &[(i64, &str)]) -> Result<aws_api::logs::PutLogEventsResponse, Error> {
        let log_events = events
            .iter()
            .map(|(timestamp, message)| InputLogEvent { timestamp: *timestamp, message: (*message).into() });
        let input = PutLogEventsRequest {
            log_group_name: "g".into(),
            log_stream_name: "s".into(),
            log_events: log_events.collect(),
            ..Default::default()
        };
        put_log_events::handle(&self.logs, &self.caller, input).await
    }
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    outcome.expect_err("refused").code
}

#[tokio::test]
async fn events_with_unacceptable_times_are_reported_and_the_rest_is_stored() {
    let f = Fixture::new().await;
    let retention = PutRetentionPolicyRequest { log_group_name: "g".into(), retention_in_days: 7 };
    put_retention_policy::handle(&f.logs, &f.caller, retention).await.expect("retention");
    let batch = [(NOW - 15 * DAY, "old"), (NOW - 8 * DAY, "expired"), (NOW, "fine"), (NOW + DAY, "early")];
    let info = f.put(&batch).await.expect("put").rejected_log_events_info.expect("info");
    assert_eq!(info.too_old_log_event_end_index, Some(1));
    assert_eq!(info.expired_log_event_end_index, Some(2));
    assert_eq!(info.too_new_log_event_start_index, Some(3));
    let get = GetLogEventsRequest {
        log_group_identifier: Some("arn:aws:logs:eu-central-1:123456789012:log-group:g:*".into()),
        log_stream_name: "s".into(),
        ..Default::default()
    };
    let events = get_log_events::handle(&f.logs, &f.caller, get).await.expect("get").events.expect("events");
    let messages: Vec<_> = events.iter().map(|event| event.message.as_deref()).collect();
    assert_eq!(messages, [Some("fine")]);
    assert_eq!(f.put(&[(NOW, "fine")]).await.expect("put").rejected_log_events_info, None);
    assert_eq!(code(f.put(&[(NOW, "b"), (NOW - 1, "a")]).await), "InvalidParameterException");
    let odd = PutRetentionPolicyRequest { log_group_name: "g".into(), retention_in_days: 2 };
    assert_eq!(
        code(put_retention_policy::handle(&f.logs, &f.caller, odd).await),
        "InvalidParameterException"
    );
}

#[tokio::test]
async fn groups_and_streams_are_described_with_their_arns() {
    let f = Fixture::new().await;
    f.put(&[(NOW - 1, "abcd")]).await.expect("put");
    let groups = describe_log_groups::handle(&f.logs, &f.caller, DescribeLogGroupsRequest::default());
    let groups = groups.await.expect("groups").log_groups.expect("list");
    let arn = "arn:aws:logs:eu-central-1:123456789012:log-group:g";
    assert_eq!(groups[0].arn.as_deref(), Some("arn:aws:logs:eu-central-1:123456789012:log-group:g:*"));
    assert_eq!(groups[0].log_group_arn.as_deref(), Some(arn));
    assert_eq!((groups[0].stored_bytes, groups[0].creation_time), (Some(30), Some(NOW)));
    assert_eq!(groups[0].log_group_class.as_deref(), Some("STANDARD"));
    let streams = DescribeLogStreamsRequest { log_group_name: Some("g".into()), ..Default::default() };
    let streams = describe_log_streams::handle(&f.logs, &f.caller, streams).await.expect("streams");
    let stream = &streams.log_streams.expect("list")[0];
    assert_eq!(stream.arn.as_deref(), Some(format!("{arn}:log-stream:s").as_str()));
    assert_eq!((stream.last_event_timestamp, stream.last_ingestion_time), (Some(NOW - 1), Some(NOW)));

    let by_identifiers = DescribeLogGroupsRequest {
        log_group_identifiers: Some(vec!["missing".into(), arn.into()]),
        ..Default::default()
    };
    let groups = describe_log_groups::handle(&f.logs, &f.caller, by_identifiers).await.expect("groups");
    assert_eq!(groups.log_groups.expect("list").len(), 1);
    let pattern = ListLogGroupsRequest {
        log_group_name_pattern: Some("^nothing|^g".into()),
        ..ListLogGroupsRequest::default()
    };
    let listed = list_log_groups::handle(&f.logs, &f.caller, pattern).await.expect("groups");
    assert_eq!(listed.log_groups.expect("list")[0].log_group_arn.as_deref(), Some(arn));
}

#[tokio::test]
async fn tags_are_kept_by_arn() {
    let f = Fixture::new().await;
    let arn = "arn:aws:logs:eu-central-1:123456789012:log-group:g".to_owned();
    let tag = |key: &str, arn: &str| TagResourceRequest {
        resource_arn: arn.to_owned(),
        tags: [(key.to_owned(), "v".to_owned())].into(),
    };
    tag_resource::handle(&f.logs, &f.caller, tag("k", &arn)).await.expect("tag");
    tag_resource::handle(&f.logs, &f.caller, tag("l", &arn)).await.expect("tag");
    let untag = UntagResourceRequest { resource_arn: arn.clone(), tag_keys: vec!["l".into()] };
    untag_resource::handle(&f.logs, &f.caller, untag).await.expect("untag");
    let list = ListTagsForResourceRequest { resource_arn: arn.clone() };
    let tags = list_tags_for_resource::handle(&f.logs, &f.caller, list).await.expect("list").tags;
    assert_eq!(tags, Some([("k".to_owned(), "v".to_owned())].into()));

    for (key, arn, expected) in [
        ("AWS:k", arn.as_str(), "InvalidParameterException"),
        ("k", "arn:aws:logs:eu-central-1:123456789012:log-group:no", "ResourceNotFoundException"),
        ("k", "arn:aws:logs:eu-central-1:210987654321:log-group:g", "ResourceNotFoundException"),
        ("k", "arn:aws:logs:us-east-1:123456789012:log-group:g", "ResourceNotFoundException"),
        ("k", "arn:aws:ecs:eu-central-1:123456789012:cluster/c", "InvalidParameterException"),
        ("k", "arn:aws:logs:eu-central-1:123456789012:log-group:g:log-stream:s", "InvalidParameterException"),
        ("k", "arn:aws:logs:eu-central-1:123456789012:destination:d", "InvalidParameterException"),
    ] {
        assert_eq!(code(tag_resource::handle(&f.logs, &f.caller, tag(key, arn)).await), expected, "{arn}");
    }
}

#[tokio::test]
async fn refusals_have_the_services_codes_and_texts() {
    let f = Fixture::new().await;
    let group = |name: &str| CreateLogGroupRequest { log_group_name: name.into(), ..Default::default() };
    let again = create_log_group::handle(&f.logs, &f.caller, group("g")).await.expect_err("refused");
    assert_eq!(again.code, "ResourceAlreadyExistsException");
    assert_eq!(again.message, "The specified log group already exists");
    assert_eq!(
        code(create_log_group::handle(&f.logs, &f.caller, group("aws/x")).await),
        "InvalidParameterException"
    );
    let missing = DeleteLogGroupRequest { log_group_name: "no".into() };
    let missing = delete_log_group::handle(&f.logs, &f.caller, missing).await.expect_err("refused");
    assert_eq!(missing.code, "ResourceNotFoundException");
    assert_eq!(missing.message, "The specified log group does not exist.");
    let filter = |change: fn(&mut FilterLogEventsRequest)| {
        let mut input = FilterLogEventsRequest { log_group_name: Some("g".into()), ..Default::default() };
        change(&mut input);
        filter_log_events::handle(&f.logs, &f.caller, input)
    };
    assert_eq!(code(filter(|i| i.filter_pattern = Some("{".into())).await), "InvalidParameterException");
    assert_eq!(code(filter(|i| i.next_token = Some("x".into())).await), "InvalidParameterException");
    assert_eq!(
        code(filter(|i| i.log_group_identifier = Some("g".into())).await),
        "InvalidParameterException"
    );
    assert_eq!(code(filter(|i| i.log_group_name = None).await), "InvalidParameterException");
    let streams = filter(|i| i.log_stream_names = Some(vec!["no".into()]));
    assert_eq!(code(streams.await), "ResourceNotFoundException");
    let both = DescribeLogStreamsRequest {
        log_group_name: Some("g".into()),
        order_by: Some("LastEventTime".into()),
        log_stream_name_prefix: Some("s".into()),
        ..Default::default()
    };
    let both = describe_log_streams::handle(&f.logs, &f.caller, both).await.expect_err("refused");
    assert_eq!(both.message, "Cannot order by LastEventTime with a logStreamNamePrefix.");
}

#[tokio::test]
async fn metric_filters_are_tried() {
    let f = Fixture::new().await;
    let input = TestMetricFilterRequest {
        filter_pattern: "[ip, status = 4*]".into(),
        log_event_messages: vec!["1.2.3.4 200".into(), "1.2.3.5 404".into()],
    };
    let matches = test_metric_filter::handle(&f.logs, &f.caller, input).await.expect("test").matches;
    let matches = matches.expect("list");
    assert_eq!(matches.len(), 1);
    assert_eq!(matches[0].event_number, Some(2));
    assert_eq!(
        matches[0].extracted_values.as_ref().and_then(|values| values.get("$status")).map(String::as_str),
        Some("404")
    );
}

#[tokio::test(start_paused = true)]
async fn a_live_tail_says_what_arrives_and_ends_after_three_hours() {
    let f = Fixture::new().await;
    let input = StartLiveTailRequest {
        log_group_identifiers: vec!["arn:aws:logs:eu-central-1:123456789012:log-group:g".into()],
        log_event_filter_pattern: Some("ERROR".into()),
        ..Default::default()
    };
    let mut body = start_live_tail::handle(&f.logs, &f.caller, input).await.expect("session");
    // Sessions are offered events in the order of their opening: what this one has, the first has.
    let pattern = FilterPattern::parse("ERROR").expect("pattern");
    let filter = TailFilter { streams: vec![], prefixes: vec![], pattern };
    let later = f.logs.store.subscribe(&f.caller.scope(), &["g".to_owned()], filter).await.expect("session");
    f.put(&[(NOW, "fine"), (NOW, "an ERROR")]).await.expect("put");
    later.ready().await;

    let mut decoder = Decoder::default();
    let (mut kinds, mut seen) = (Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame;
        decoder.push(frame.data_ref().expect("data"));
        while let Some(message) = decoder.next_message().expect("message") {
            let kind = message.header(":event-type").or(message.header(":exception-type")).expect("type");
            let event = StartLiveTailResponseStream::from_payload(kind, &message.payload).expect("payload");
            if let Some(StartLiveTailResponseStream::SessionUpdate(update)) = event {
                seen.extend(update.session_results.expect("results"));
            }
            kinds.push(kind.to_owned());
        }
    }
    assert_eq!(kinds[..2], ["initial-response", "sessionStart"]);
    assert_eq!(kinds.last().map(String::as_str), Some("SessionTimeoutException"));
    assert_eq!(kinds.len(), 3 + 3 * 60 * 60 - 1);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].message.as_deref(), Some("an ERROR"));
    assert_eq!(seen[0].log_group_identifier.as_deref(), Some("123456789012:g"));
}

#[tokio::test]
async fn a_live_tail_ends_when_the_client_hangs_up() {
    let f = Fixture::new().await;
    let open = async || {
        let input = StartLiveTailRequest { log_group_identifiers: vec!["g".into()], ..Default::default() };
        start_live_tail::handle(&f.logs, &f.caller, input).await
    };
    let mut bodies = Vec::new();
    for _ in 0..15 {
        bodies.push(open().await.expect("session"));
    }
    assert_eq!(open().await.err().map(|refused| refused.code).as_deref(), Some("LimitExceededException"));
    bodies.pop();
    let body = tokio::time::timeout(Duration::from_secs(30), open()).await.expect("in time");
    assert!(body.is_ok());
}
