use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn texts(page: &GetPage) -> Vec<&str> {
    page.events.iter().map(|event| event.message.as_str()).collect()
}

#[tokio::test]
async fn a_stream_is_read_from_both_ends() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    // Out of order, and two at one time: those come in the order of arrival.
    f.put("g", "s", &[(30, "c"), (10, "a"), (20, "b1")]).await;
    f.put("g", "s", &[(20, "b2"), (40, "d")]).await;

    let head = GetQuery { from_head: true, limit: 2, ..GetQuery::default() };
    let first = f.get("g", "s", head.clone()).await;
    assert_eq!(texts(&first), ["a", "b1"]);
    let on = |token: &str| GetQuery { token: Some(token.to_owned()), ..head.clone() };
    let second = f.get("g", "s", on(&first.next_forward)).await;
    assert_eq!(texts(&second), ["b2", "c"]);
    let third = f.get("g", "s", on(&second.next_forward)).await;
    assert_eq!(texts(&third), ["d"]);
    let end = f.get("g", "s", on(&third.next_forward)).await;
    assert!(end.events.is_empty());
    assert_eq!(end.next_forward, third.next_forward, "the end answers with the token that was given");
    f.put("g", "s", &[(50, "e")]).await;
    assert_eq!(texts(&f.get("g", "s", on(&end.next_forward)).await), ["e"]);
    // Turning round at the end gives the page before it.
    assert_eq!(texts(&f.get("g", "s", on(&third.next_backward)).await), ["b2", "c"]);
    let start = f.get("g", "s", on(&first.next_backward)).await;
    assert!(start.events.is_empty());
    assert_eq!(start.next_backward, first.next_backward);

    let tail = f.get("g", "s", GetQuery { limit: 2, ..GetQuery::default() }).await;
    assert_eq!(texts(&tail), ["d", "e"]);
    assert_eq!(texts(&f.get("g", "s", on(&tail.next_backward)).await), ["b2", "c"]);

    let between = GetQuery { start: Some(20), end: Some(40), limit: 10, ..GetQuery::default() };
    assert_eq!(texts(&f.get("g", "s", between).await), ["b1", "b2", "c"]);
    let backwards = GetQuery { start: Some(40), end: Some(20), limit: 10, ..GetQuery::default() };
    assert!(f.get("g", "s", backwards).await.events.is_empty());

    for token in ["", "f/", "f/AAAA", "x", first.next_forward.trim_start_matches("f/")] {
        let refused = f.store.get(&f.scope, "g", "s", on(token)).await;
        assert!(matches!(refused, Err(LogError::InvalidToken)), "{token}");
    }
    f.stream("g", "other").await;
    let foreign = f.store.get(&f.scope, "g", "other", on(&first.next_forward)).await;
    assert!(matches!(foreign, Err(LogError::InvalidToken)));
    let missing = f.store.get(&f.scope, "g", "no", head).await;
    assert!(matches!(missing, Err(LogError::StreamNotFound)));
}

#[tokio::test]
async fn a_reader_that_begins_before_the_first_event_sees_it() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    for from_head in [true, false] {
        let empty = f.get("g", "s", GetQuery { from_head, limit: 10, ..GetQuery::default() }).await;
        assert!(empty.events.is_empty());
        let time = NOW + i64::from(from_head);
        f.put("g", "s", &[(time, "x")]).await;
        let query = GetQuery { token: Some(empty.next_forward), limit: 10, ..GetQuery::default() };
        assert_eq!(texts(&f.get("g", "s", query).await), ["x"]);
        f.store.delete_stream(&f.scope, "g", "s").await.expect("delete");
        f.stream("g", "s").await;
    }
}

#[tokio::test]
async fn pages_end_at_a_megabyte() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    let big = "x".repeat(400_000);
    f.put("g", "s", &[(1, &big), (2, &big), (3, &big)]).await;
    let page = f.get("g", "s", GetQuery { from_head: true, limit: 10_000, ..GetQuery::default() }).await;
    assert_eq!(page.events.len(), 2);
    let query = FilterQuery { limit: 10_000, ..FilterQuery::default() };
    let pattern = Arc::new(FilterPattern::parse("").expect("pattern"));
    let page = f.store.filter(&f.scope, "g", query.clone(), pattern).await.expect("page");
    assert_eq!(page.events.len(), 2);
    assert_eq!(f.filter("g", query, "").await.len(), 3);
    let too_long = vec![event(1, &"x".repeat(1_048_576))];
    let refused = f.store.append(&f.scope, "g", "s", too_long, None).await;
    assert!(matches!(refused, Err(LogError::InvalidParameter(_))));
}

#[tokio::test]
async fn searches_keep_to_their_streams_times_and_pattern() {
    let f = Fixture::new();
    f.group("g").await;
    for name in ["web/1", "web/2", "db/1"] {
        f.stream("g", name).await;
    }
    f.put("g", "web/1", &[(10, "ERROR one"), (30, "fine three")]).await;
    f.put("g", "web/2", &[(20, "ERROR two"), (30, "ERROR three")]).await;
    f.put("g", "db/1", &[(15, "ERROR db"), (40, "fine db")]).await;
    let all = FilterQuery { limit: 1, ..FilterQuery::default() };
    let found = f.filter("g", all.clone(), "").await;
    assert_eq!(
        messages(&found),
        ["ERROR one", "ERROR db", "ERROR two", "fine three", "ERROR three", "fine db"]
    );
    assert_eq!(found.iter().map(|e| &*e.stream).collect::<HashSet<_>>().len(), 3);
    assert_eq!(found.iter().map(|e| &e.event.id).collect::<HashSet<_>>().len(), 6);
    assert_eq!(f.filter("g", all.clone(), "").await, found, "ids stay the same");
    let prefix = FilterQuery { prefix: "web/".into(), ..all.clone() };
    assert_eq!(messages(&f.filter("g", prefix, "ERROR").await), ["ERROR one", "ERROR two", "ERROR three"]);
    let named = FilterQuery { streams: vec!["db/1".into(), "web/1".into(), "db/1".into()], ..all.clone() };
    assert_eq!(messages(&f.filter("g", named, "fine").await), ["fine three", "fine db"]);
    let times = FilterQuery { start: Some(15), end: Some(30), ..all.clone() };
    assert_eq!(messages(&f.filter("g", times, "-fine").await), ["ERROR db", "ERROR two", "ERROR three"]);
    let missing = FilterQuery { streams: vec!["no".into()], ..all };
    let pattern = Arc::new(FilterPattern::parse("").expect("pattern"));
    let refused = f.store.filter(&f.scope, "g", missing, pattern).await;
    assert!(matches!(refused, Err(LogError::StreamNotFound)));
}

/// A search over more events than one page may read gets on, page after page, and misses nothing.
#[tokio::test]
async fn a_search_for_a_needle_ends() {
    let f = Fixture::new();
    f.group("g").await;
    let mut expected = Vec::new();
    for (s, count) in [(0, 130_000), (1, 20_000), (2, 10)] {
        let stream = format!("s{s}");
        f.stream("g", &stream).await;
        for chunk in 0..(count + 9_999) / 10_000 {
            let events = (chunk * 10_000..count.min((chunk + 1) * 10_000)).map(|i| {
                let needle = i % 9_973 == 7;
                event(NOW + i, &if needle { format!("needle {s} {i}") } else { format!("hay {i}") })
            });
            let events: Vec<_> = events.collect();
            expected.extend(events.iter().filter(|e| e.message.starts_with("needle")).cloned());
            f.store.append(&f.scope, "g", &stream, events, None).await.expect("append");
        }
    }
    expected.sort_by_key(|e| e.timestamp);
    let query = FilterQuery { limit: 3, ..FilterQuery::default() };
    let found = f.filter("g", query, "needle").await;
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.event.timestamp, expected.timestamp);
    }
    let query = FilterQuery { limit: 10_000, ..FilterQuery::default() };
    assert_eq!(f.filter("g", query.clone(), "nothing").await, []);
    assert_eq!(f.filter("g", query.clone(), "").await.len(), 150_010);
    // 150,010 events of about 36 bytes: pages get on by about what they are meant to read.
    let (events, pages) = f.filter_within("g", query, "nothing", 256 << 10).await;
    assert_eq!(events, []);
    assert!((10..40).contains(&pages), "{pages} pages");
}

/// Many short streams one after the other, as tasks leave them: a page opens only those of its time.
#[tokio::test]
async fn a_search_over_many_streams_is_in_order() {
    let f = Fixture::new();
    f.group("g").await;
    let mut expected = Vec::new();
    for s in 0..600_i64 {
        let name = format!("task/{s}");
        f.stream("g", &name).await;
        let events: Vec<_> = (0..250).map(|i| event(NOW + s * 100 + i, &format!("{s} {i}"))).collect();
        expected.extend(events.iter().cloned());
        f.store.append(&f.scope, "g", &name, events, None).await.expect("append");
    }
    expected.sort_by_key(|e| e.timestamp);
    let query = FilterQuery { limit: 10_000, ..FilterQuery::default() };
    let found = f.filter("g", query.clone(), "").await;
    assert!(found.iter().map(|e| &e.event.message).eq(expected.iter().map(|e| &e.message)));
    assert_eq!(f.filter("g", query.clone(), "\"599 249\"").await.len(), 1);
    let (events, pages) = f.filter_within("g", query, "\"599 249\"", 256 << 10).await;
    assert_eq!(events.len(), 1);
    assert!((10..40).contains(&pages), "{pages} pages");
}

#[derive(Clone, Debug)]
struct Put {
    stream: usize,
    times: Vec<i64>,
}

fn puts() -> impl Strategy<Value = Vec<Put>> {
    let put = (0..4_usize, prop::collection::vec(0..40_i64, 0..12));
    prop::collection::vec(put.prop_map(|(stream, times)| Put { stream, times }), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Under any limit and reading budget, every event is seen exactly once and in order: searching, and reading each
    /// stream forwards and backwards.
    #[test]
    fn pages_lose_and_repeat_nothing(puts in puts(), limits in prop::collection::vec((1..9_usize, 1..2_000_u64), 1..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let f = Fixture::new();
            f.group("g").await;
            let mut expected: Vec<(i64, usize, String)> = Vec::new();
            for s in 0..4 {
                f.stream("g", &s.to_string()).await;
            }
            for put in &puts {
                let events: Vec<_> = put.times.iter().enumerate()
                    .map(|(i, time)| event(*time, &format!("{}", expected.len() + i))).collect();
                expected.extend(events.iter().map(|e| (e.timestamp, put.stream, e.message.clone())));
                f.store.append(&f.scope, "g", &put.stream.to_string(), events, None).await.expect("append");
            }
            // Stable: events of one time stay in the order of arrival.
            expected.sort_by_key(|(time, ..)| *time);
            for (limit, budget) in limits {
                let query = FilterQuery { limit, ..FilterQuery::default() };
                let (found, _) = f.filter_within("g", query, "", budget).await;
                let found: Vec<_> = found.iter()
                    .map(|e| (e.event.timestamp, e.stream.parse().expect("number"), e.event.message.clone())).collect();
                assert_eq!(found, expected);
                for s in 0..4 {
                    let wanted: Vec<_> = expected.iter().filter(|e| e.1 == s).map(|e| e.2.clone()).collect();
                    for from_head in [true, false] {
                        let mut query = GetQuery { from_head, limit, ..GetQuery::default() };
                        let mut seen: Vec<String> = Vec::new();
                        loop {
                            let page = f.get("g", &s.to_string(), query.clone()).await;
                            let next = if from_head { page.next_forward } else { page.next_backward };
                            let texts = page.events.into_iter().map(|e| e.message);
                            if from_head { seen.extend(texts) } else { seen.splice(0..0, texts); }
                            if query.token.as_ref() == Some(&next) {
                                break;
                            }
                            query.token = Some(next);
                        }
                        assert_eq!(&seen, &wanted);
                    }
                }
            }
        });
    }
}
