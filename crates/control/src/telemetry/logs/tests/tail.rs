use std::time::Duration;

use super::*;

fn everything() -> TailFilter {
    TailFilter {
        streams: Vec::new(),
        prefixes: Vec::new(),
        pattern: FilterPattern::parse("").expect("pattern"),
    }
}

/// Takes updates until there are `count` events; gives up after a while.
async fn take(session: &TailSession, count: usize) -> Vec<TailEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        tokio::time::timeout(Duration::from_secs(30), session.ready()).await.expect("events arrive");
        events.extend(session.update().events);
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_appended_by_many_are_all_seen_while_they_are_taken() {
    let f = Fixture::new();
    f.group("g").await;
    f.group("other").await;
    f.stream("other", "s").await;
    let session = f.store.subscribe(&f.scope, &["g".into()], everything()).await.expect("session");
    let mut writers = Vec::new();
    for w in 0..4 {
        let name = format!("w{w}");
        f.stream("g", &name).await;
        let (store, scope) = (f.store.clone(), f.scope.clone());
        writers.push(tokio::spawn(async move {
            for i in 0..100 {
                let one = vec![event(NOW + i, &format!("{w}-{i}"))];
                store.append(&scope, "g", &name, one, None).await.expect("append");
                store.append(&scope, "other", "s", vec![event(NOW, "x")], None).await.expect("append");
            }
        }));
    }
    let seen = take(&session, 400).await;
    for writer in writers {
        writer.await.expect("writer");
    }
    assert!(seen.iter().all(|e| &*e.group == "g"));
    for w in 0..4 {
        let of_writer: Vec<_> = seen.iter().filter(|e| *e.stream == *format!("w{w}")).collect();
        assert!(of_writer.iter().map(|e| e.timestamp).eq(NOW..NOW + 100), "each stream in order");
    }
    let query = FilterQuery { limit: 10_000, ..FilterQuery::default() };
    assert_eq!(f.filter("g", query, "").await.len(), 400);
}

#[tokio::test]
async fn sessions_filter_by_stream_and_pattern() {
    let f = Fixture::new();
    f.group("g").await;
    for name in ["web/1", "web/2", "db"] {
        f.stream("g", name).await;
    }
    let pattern = || FilterPattern::parse("ERROR").expect("pattern");
    let groups = ["g".to_owned()];
    let by_prefix = TailFilter { streams: vec![], prefixes: vec!["web/".into()], pattern: pattern() };
    let by_prefix = f.store.subscribe(&f.scope, &groups, by_prefix).await.expect("session");
    let by_name = TailFilter { streams: vec!["db".into()], prefixes: vec![], pattern: pattern() };
    let by_name = f.store.subscribe(&f.scope, &groups, by_name).await.expect("session");
    for name in ["web/1", "db", "web/2"] {
        f.put("g", name, &[(1, "fine"), (2, "ERROR")]).await;
    }
    let streams = |events: Vec<TailEvent>| events.iter().map(|e| e.stream.to_string()).collect::<Vec<_>>();
    assert_eq!(streams(take(&by_prefix, 2).await), ["web/1", "web/2"]);
    assert_eq!(streams(take(&by_name, 1).await), ["db"]);
    let missing = f.store.subscribe(&f.scope, &["no".into()], everything()).await;
    assert!(matches!(missing, Err(LogError::GroupNotFound)));
}

#[tokio::test]
async fn what_does_not_fit_an_update_is_dropped_and_said() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    let session = f.store.subscribe(&f.scope, &["g".into()], everything()).await.expect("session");
    let filter = TailFilter { pattern: FilterPattern::parse("marker").expect("pattern"), ..everything() };
    let marker = f.store.subscribe(&f.scope, &["g".into()], filter).await.expect("session");
    let flood = (0..2_000).map(|i| event(NOW, &i.to_string())).collect();
    f.store.append(&f.scope, "g", "s", flood, None).await.expect("append");
    f.put("g", "s", &[(NOW, "marker")]).await;
    // The marker comes after the flood, so the flood has been offered whole.
    take(&marker, 1).await;
    let update = session.update();
    assert_eq!((update.events.len(), update.sampled), (500, true));
    assert_eq!(session.update(), TailUpdate::default());
    // Bytes are bounded, too.
    let big = "x".repeat(900_000);
    f.put("g", "s", &[(NOW, &big), (NOW, &big), (NOW, &big), (NOW, "marker")]).await;
    take(&marker, 1).await;
    let update = session.update();
    assert!(update.sampled);
    assert_eq!(update.events.len(), 3, "two large ones and the marker");
}

#[tokio::test]
async fn sessions_are_limited_and_end_when_dropped() {
    let f = Fixture::new();
    f.group("g").await;
    let open = async || f.store.subscribe(&f.scope, &["g".into()], everything()).await;
    let mut sessions = Vec::new();
    for _ in 0..15 {
        sessions.push(open().await.expect("session"));
    }
    assert!(matches!(open().await, Err(LogError::TooManySessions)));
    sessions.pop();
    sessions.push(open().await.expect("room again"));
}
