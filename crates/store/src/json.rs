//! Typed access: values as JSON.

use serde::de::DeserializeOwned;

use crate::{Error, KeyValue, Range, Revision, Store};

/// A decoded value and the revision that wrote it, for [`Txn::expect_revision`](crate::Txn::expect_revision).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    pub value: T,
    pub revision: Revision,
}

/// A decoded range; the fields are those of [`RangeResult`](crate::RangeResult).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonRange<T> {
    /// Key and value, in the range's order.
    pub entries: Vec<(String, Versioned<T>)>,
    pub more: bool,
    pub revision: Revision,
}

impl KeyValue {
    /// The value decoded from JSON; the error names the key and never shows the value.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.value)
            .map_err(|error| Error::Decode { key: self.key.clone(), detail: without_value(&error) })
    }
}

/// serde words a mismatch as "invalid type: string \"hunter2\", expected u32 at line 1 column 9".
fn without_value(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(", expected ") {
        Some(at) => text[at + 2..].to_owned(),
        None => text,
    }
}

impl Store {
    /// [`get`](Store::get), decoded from JSON.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Versioned<T>>, Error> {
        let Some(kv) = self.get(key).await? else {
            return Ok(None);
        };
        Ok(Some(Versioned { value: kv.json()?, revision: kv.mod_revision }))
    }

    /// [`range`](Store::range), every value decoded from JSON; the first that cannot be is the error.
    pub async fn range_json<T: DeserializeOwned>(&self, range: Range) -> Result<JsonRange<T>, Error> {
        let found = self.range(range).await?;
        let mut entries = Vec::with_capacity(found.kvs.len());
        for kv in found.kvs {
            let value = kv.json()?;
            entries.push((kv.key, Versioned { value, revision: kv.mod_revision }));
        }
        Ok(JsonRange { entries, more: found.more, revision: found.revision })
    }
}
