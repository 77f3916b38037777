use super::*;

const HOUR: i64 = 3_600_000;

fn left(f: &Fixture) -> usize {
    f.store.inner.events.len().expect("count")
}

#[tokio::test]
async fn expired_events_are_hidden_then_removed() {
    let f = Fixture::new();
    f.group("g").await;
    f.group("for-ever").await;
    for (group, stream) in [("g", "s"), ("g", "old"), ("for-ever", "s")] {
        f.stream(group, stream).await;
    }
    let old = NOW - 25 * HOUR;
    f.put("g", "s", &[(old, "old"), (NOW - 23 * HOUR, "kept"), (NOW, "new")]).await;
    f.put("g", "old", &[(old, "old"), (old + 1, "old")]).await;
    f.put("for-ever", "s", &[(old, "old")]).await;
    assert_eq!(f.store.sweep().await.expect("sweep"), Swept::default());

    f.store.set_retention(&f.scope, "g", Some(1)).await.expect("retention");
    let query = FilterQuery { limit: 10, ..FilterQuery::default() };
    assert_eq!(messages(&f.filter("g", query.clone(), "").await), ["kept", "new"]);
    let head = GetQuery { from_head: true, limit: 10, ..GetQuery::default() };
    assert_eq!(f.get("g", "s", head).await.events.len(), 2);
    assert_eq!(left(&f), 6);

    let swept = f.store.sweep().await.expect("sweep");
    assert_eq!(swept, Swept { expired_events: 3, ..Swept::default() });
    assert_eq!(left(&f), 3);
    let stream = f.store.stream(&f.scope, "g", "s").await.expect("stream");
    assert_eq!((stream.first_event_at, stream.last_event_at), (Some(NOW - 23 * HOUR), Some(NOW)));
    let stream = f.store.stream(&f.scope, "g", "old").await.expect("the stream stays");
    assert_eq!(stream.last_event_at, None);
    assert_eq!(f.store.group(&f.scope, "g").await.expect("group").stored_bytes, 26 + 4 + 26 + 3);

    f.clock.advance(2 * 24 * HOUR);
    assert_eq!(f.store.sweep().await.expect("sweep").expired_events, 2);
    assert_eq!(messages(&f.filter("for-ever", query, "").await), ["old"]);
}

#[tokio::test]
async fn deleted_groups_and_streams_vanish_at_once_and_are_erased_later() {
    let f = Fixture::new();
    f.group("g").await;
    f.group("kept").await;
    f.stream("kept", "s").await;
    f.put("kept", "s", &[(NOW, "kept")]).await;
    let stream_names = ["a", "b", "c"];
    for name in stream_names {
        f.stream("g", name).await;
        // More than one chunk of the sweep.
        let events = (0..2_500).map(|i| event(NOW + i, "x")).collect();
        f.store.append(&f.scope, "g", name, events, None).await.expect("append");
    }
    f.store.delete_stream(&f.scope, "g", "a").await.expect("delete");
    let query = FilterQuery { limit: 10_000, ..FilterQuery::default() };
    assert_eq!(f.filter("g", query.clone(), "").await.len(), 5_000);
    f.stream("g", "a").await;
    assert!(f.get("g", "a", GetQuery { limit: 1, ..GetQuery::default() }).await.events.is_empty());
    let swept = f.store.sweep().await.expect("sweep");
    assert_eq!(swept.erased_events, 2_500);

    f.store.delete_group(&f.scope, "g").await.expect("delete");
    let append = f.store.append(&f.scope, "g", "b", vec![event(NOW, "x")], None).await;
    assert!(matches!(append, Err(LogError::GroupNotFound)));
    f.group("g").await;
    f.stream("g", "b").await;
    f.put("g", "b", &[(NOW, "of the new group")]).await;
    let f = f.reopen();
    let swept = f.store.sweep().await.expect("sweep");
    assert_eq!(swept.erased_events, 5_000);
    assert_eq!(f.store.sweep().await.expect("sweep"), Swept::default());
    assert_eq!(messages(&f.filter("g", query.clone(), "").await), ["of the new group"]);
    assert_eq!(messages(&f.filter("kept", query, "").await), ["kept"]);
    assert_eq!(left(&f), 2);
}

#[tokio::test]
async fn cursors_of_sources_long_gone_are_removed() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    let send = async |source: &str| {
        let cursor = Some(Cursor { source: source.into(), upto: 1 });
        f.store.append(&f.scope, "g", "s", vec![event(NOW, "x")], cursor).await.expect("append");
    };
    send("gone").await;
    f.clock.advance(80 * DAY_MS);
    send("alive").await;
    assert_eq!(f.store.sweep().await.expect("sweep").cursors, 0);
    f.clock.advance(20 * DAY_MS);
    assert_eq!(f.store.sweep().await.expect("sweep").cursors, 1);
    assert_eq!(f.store.cursor("gone").await.expect("cursor"), 0);
    assert_eq!(f.store.cursor("alive").await.expect("cursor"), 1);
}
