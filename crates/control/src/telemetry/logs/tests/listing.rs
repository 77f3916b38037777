use std::collections::BTreeMap;

use super::*;

async fn group_names(f: &Fixture, mut query: GroupQuery) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let page = f.store.describe_groups(&f.scope, query.clone()).await.expect("page");
        assert!(page.groups.len() <= query.limit);
        names.extend(page.groups.into_iter().map(|group| group.name));
        query.token = page.next_token;
        if query.token.is_none() {
            return names;
        }
    }
}

async fn stream_names(f: &Fixture, group: &str, mut query: StreamQuery) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let page = f.store.describe_streams(&f.scope, group, query.clone()).await.expect("page");
        assert!(page.streams.len() <= query.limit);
        names.extend(page.streams.into_iter().map(|stream| stream.name));
        query.token = page.next_token;
        if query.token.is_none() {
            return names;
        }
    }
}

#[tokio::test]
async fn groups_are_created_listed_changed_and_deleted() {
    let f = Fixture::new();
    for name in ["b", "a/1", "a/2", "a", "c"] {
        f.group(name).await;
    }
    let again = NewGroup { name: "a".into(), ..NewGroup::default() };
    assert!(matches!(f.store.create_group(&f.scope, again.clone()).await, Err(LogError::GroupExists)));
    // Another account has groups of its own.
    f.store.create_group(&scope("210987654321"), again).await.expect("group of another account");

    for limit in 1..7 {
        let query = |names| GroupQuery { names, limit, ..GroupQuery::default() };
        assert_eq!(group_names(&f, query(NamePattern::Any)).await, ["a", "a/1", "a/2", "b", "c"]);
        assert_eq!(group_names(&f, query(NamePattern::Prefix("a/".into()))).await, ["a/1", "a/2"]);
        assert_eq!(group_names(&f, query(NamePattern::Contains("2".into()))).await, ["a/2"]);
        let patterns = vec!["^b".into(), "/1".into()];
        assert_eq!(group_names(&f, query(NamePattern::AnyOf(patterns))).await, ["a/1", "b"]);
    }
    let bad = GroupQuery { token: Some("made-up".into()), limit: 1, ..GroupQuery::default() };
    assert!(matches!(f.store.describe_groups(&f.scope, bad).await, Err(LogError::InvalidToken)));

    f.store.set_retention(&f.scope, "a", Some(7)).await.expect("retention");
    let tags = BTreeMap::from([("team".to_owned(), "blue".to_owned()), ("x".to_owned(), "y".to_owned())]);
    f.store.tag_group(&f.scope, "a", tags).await.expect("tags");
    f.store.untag_group(&f.scope, "a", vec!["x".into(), "none".into()]).await.expect("untag");
    let f = f.reopen();
    let group = f.store.group(&f.scope, "a").await.expect("group");
    assert_eq!((group.retention_days, group.created_at), (Some(7), NOW));
    assert_eq!(group.tags, BTreeMap::from([("team".to_owned(), "blue".to_owned())]));
    for (value, found) in [("blue", 1), ("bl*", 1), ("*ue", 1), ("*lu*", 1), ("!blue", 0), ("red", 0)] {
        let tags = vec![("team".to_owned(), vec![value.to_owned()])];
        let query = GroupQuery { tags, limit: 50, ..GroupQuery::default() };
        assert_eq!(group_names(&f, query).await.len(), found, "{value}");
    }
    let many = (0..51).map(|i| (i.to_string(), String::new())).collect();
    assert!(matches!(f.store.tag_group(&f.scope, "a", many).await, Err(LogError::TooManyTags)));
    assert_eq!(f.store.group(&f.scope, "a").await.expect("group").tags.len(), 1);

    f.store.delete_group(&f.scope, "a").await.expect("delete");
    assert!(matches!(f.store.group(&f.scope, "a").await, Err(LogError::GroupNotFound)));
    assert!(matches!(f.store.delete_group(&f.scope, "a").await, Err(LogError::GroupNotFound)));
    assert!(matches!(f.store.set_retention(&f.scope, "a", None).await, Err(LogError::GroupNotFound)));
}

#[tokio::test]
async fn a_protected_group_is_not_deleted() {
    let f = Fixture::new();
    let group = NewGroup { name: "g".into(), deletion_protection: true, ..NewGroup::default() };
    f.store.create_group(&f.scope, group).await.expect("group");
    assert!(matches!(f.store.delete_group(&f.scope, "g").await, Err(LogError::DeletionProtected)));
    assert!(f.store.group(&f.scope, "g").await.is_ok());
}

#[tokio::test]
async fn streams_are_listed_by_name_and_by_last_event() {
    let f = Fixture::new();
    f.group("g").await;
    f.group("h").await;
    f.stream("h", "elsewhere").await;
    for name in ["b", "web/2", "web/1", "a", "\u{10ffff}"] {
        f.stream("g", name).await;
    }
    assert!(matches!(f.store.create_stream(&f.scope, "g", "a").await, Err(LogError::StreamExists)));
    assert!(matches!(f.store.create_stream(&f.scope, "no", "a").await, Err(LogError::GroupNotFound)));
    f.put("g", "web/1", &[(NOW + 5, "x"), (NOW - 5, "x")]).await;
    f.put("g", "b", &[(NOW + 1, "x")]).await;
    f.put("g", "a", &[(NOW + 1, "x")]).await;
    for limit in 1..7 {
        let query = |prefix: &str, order, descending| StreamQuery {
            prefix: prefix.into(),
            order,
            descending,
            token: None,
            limit,
        };
        let by_name = ["a", "b", "web/1", "web/2", "\u{10ffff}"];
        let by_time = ["web/2", "\u{10ffff}", "a", "b", "web/1"];
        let reversed = |names: [&'static str; 5]| names.into_iter().rev().collect::<Vec<_>>();
        assert_eq!(stream_names(&f, "g", query("", StreamOrder::Name, false)).await, by_name);
        assert_eq!(stream_names(&f, "g", query("", StreamOrder::Name, true)).await, reversed(by_name));
        assert_eq!(stream_names(&f, "g", query("web/", StreamOrder::Name, false)).await, ["web/1", "web/2"]);
        assert_eq!(stream_names(&f, "g", query("web/", StreamOrder::Name, true)).await, ["web/2", "web/1"]);
        let newest = query("", StreamOrder::LastEventTime, true);
        assert_eq!(stream_names(&f, "g", newest).await, reversed(by_time));
        assert_eq!(stream_names(&f, "g", query("", StreamOrder::LastEventTime, false)).await, by_time);
    }
    // A token leads on in its own list only.
    let one = StreamQuery { limit: 1, ..StreamQuery::default() };
    let page = f.store.describe_streams(&f.scope, "g", one.clone()).await.expect("page");
    for (group, descending, order) in [
        ("h", false, StreamOrder::Name),
        ("g", true, StreamOrder::Name),
        ("g", false, StreamOrder::LastEventTime),
    ] {
        let query = StreamQuery { token: page.next_token.clone(), descending, order, ..one.clone() };
        let refused = f.store.describe_streams(&f.scope, group, query).await;
        assert!(matches!(refused, Err(LogError::InvalidToken)));
    }
    let stream = f.store.stream(&f.scope, "g", "web/1").await.expect("stream");
    assert_eq!((stream.first_event_at, stream.last_event_at), (Some(NOW - 5), Some(NOW + 5)));
    assert_eq!(stream.last_ingested_at, Some(NOW));
    // 4 events of 1 byte, and 26 for each.
    assert_eq!(f.store.group(&f.scope, "g").await.expect("group").stored_bytes, 4 * 27);
    f.store.delete_stream(&f.scope, "g", "web/1").await.expect("delete");
    assert!(matches!(f.store.delete_stream(&f.scope, "g", "web/1").await, Err(LogError::StreamNotFound)));
    assert_eq!(f.store.group(&f.scope, "g").await.expect("group").stored_bytes, 2 * 27);
}

#[tokio::test]
async fn streams_are_ensured_with_their_group() {
    let f = Fixture::new();
    let ensure = async |create| f.store.ensure_stream(&f.scope, "g", "s", create).await;
    assert!(matches!(ensure(false).await, Err(LogError::GroupNotFound)));
    ensure(true).await.expect("created");
    ensure(true).await.expect("there");
    ensure(false).await.expect("there");
    assert!(f.store.stream(&f.scope, "g", "s").await.is_ok());
}

#[tokio::test]
async fn a_failed_change_leaves_nothing_and_the_rest_of_its_commit_stands() {
    let f = Fixture::new();
    f.group("g").await;
    f.stream("g", "s").await;
    // Many changes at once share commits; those that fail must not take others with them.
    let put = |i: usize| {
        let (store, scope) = (f.store.clone(), f.scope.clone());
        tokio::spawn(async move {
            let stream = if i.is_multiple_of(3) { "missing" } else { "s" };
            let cursor = Cursor { source: format!("source-{i}"), upto: 1 };
            store.append(&scope, "g", stream, vec![event(NOW, "m")], Some(cursor)).await.is_ok()
        })
    };
    let puts: Vec<_> = (0..300).map(put).collect();
    let mut stored = 0;
    for (i, put) in puts.into_iter().enumerate() {
        let ok = put.await.expect("task");
        assert_eq!(ok, !i.is_multiple_of(3));
        assert_eq!(f.store.cursor(&format!("source-{i}")).await.expect("cursor"), u64::from(ok));
        stored += usize::from(ok);
    }
    let query = FilterQuery { limit: 10_000, ..FilterQuery::default() };
    assert_eq!(f.filter("g", query, "").await.len(), stored);
}
