//! Typed values.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use store::{Error, Event, Range, Txn};

use crate::support::{error, fresh, within};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    name: String,
    count: u32,
}

fn record(name: &str) -> Record {
    Record { name: name.to_owned(), count: 3 }
}

#[tokio::test]
async fn values_come_back_typed_and_versioned() {
    let (store, _dir) = fresh();
    let mut watch = store.watch("r/", None);
    let txn = Txn::new().put_json("r/1", &record("one")).put_json("r/2", &record("two"));
    let revision = store.commit(txn).await.unwrap();

    let one = store.get_json::<Record>("r/1").await.unwrap().unwrap();
    assert_eq!((one.value, one.revision), (record("one"), revision));
    assert!(store.get_json::<Record>("r/3").await.unwrap().is_none());

    let all = store.range_json::<Record>(Range::prefix("r/").limit(1)).await.unwrap();
    assert!(all.more);
    assert_eq!(all.revision, revision);
    assert_eq!(all.entries.len(), 1);
    assert_eq!(all.entries[0].0, "r/1");
    assert_eq!(all.entries[0].1.value, record("one"));

    let batch = within("the event", watch.next()).await.unwrap();
    let Event::Put(kv) = &batch.events[1] else {
        panic!("expected a put, not {batch:?}");
    };
    assert_eq!(kv.json::<Record>().unwrap(), record("two"));
}

#[tokio::test]
async fn a_decode_error_names_the_key_and_hides_the_value() {
    let (store, _dir) = fresh();
    let txn = Txn::new()
        .put("secret/1", r#"{"name":"x","count":"hunter2"}"#)
        .put("secret/2", r#"{"name":"x"}"#)
        .put("secret/3", "hunter2");
    store.commit(txn).await.unwrap();

    for (key, says) in
        [("secret/1", "expected u32"), ("secret/2", "missing field `count`"), ("secret/3", "expected value")]
    {
        let error = store.get_json::<Record>(key).await.unwrap_err();
        assert!(matches!(&error, Error::Decode { key: named, .. } if named == key));
        let text = error.to_string();
        assert!(text.contains(key) && text.contains(says), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    let error = store.range_json::<Record>(Range::prefix("secret/")).await.unwrap_err();
    assert!(error.to_string().contains("secret/1"));
}

#[tokio::test]
async fn what_has_no_json_form_fails_the_commit() {
    let (store, _dir) = fresh();
    let odd = HashMap::from([((1, 2), "a key that is no string")]);
    let txn = Txn::new().put("other", "x").put_json("odd", &odd);
    let error = error(store.commit(txn).await);
    assert!(matches!(error, Error::Encode { key, .. } if key == "odd"));
    assert_eq!(store.get("other").await.unwrap(), None);
}
