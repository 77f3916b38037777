//! Pages of lists.
//!
//! A token names the last key of the page before, relative to the listed prefix, and a digest of the
//! query that it belongs to. It gives no access: the range that it continues is the caller's own.

use std::ops::RangeInclusive;

use aws_api::Error;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use store::{Range, Store};

use super::errors::{internal, invalid};

const DIGEST: usize = 8;
const MAX_TOKEN: usize = 2048;

/// One page of a list over the keys under a prefix.
#[derive(Debug)]
pub(super) struct Page {
    digest: [u8; DIGEST],
    prefix: String,
    /// The key that the page begins after.
    pub after: Option<String>,
    pub limit: usize,
}

impl Page {
    /// `query` holds what must stay the same from page to page. Without `max_results` a page has as
    /// many results as it may.
    pub fn parse(
        prefix: String,
        query: &[&str],
        token: Option<&str>,
        max_results: Option<i32>,
        bounds: RangeInclusive<i32>,
    ) -> Result<Self, Error> {
        let limit = max_results.unwrap_or(*bounds.end());
        if !bounds.contains(&limit) {
            let (least, most) = (bounds.start(), bounds.end());
            return Err(invalid(format!("maxResults must be between {least} and {most}.")));
        }
        let digest = digest(&prefix, query);
        let after = match token.filter(|t| !t.is_empty()) {
            None => None,
            Some(token) => {
                let suffix = decode(token, digest).ok_or_else(|| invalid("Invalid token."))?;
                Some(format!("{prefix}{suffix}"))
            }
        };
        Ok(Self { digest, prefix, after, limit: usize::try_from(limit).unwrap_or(1) })
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Fills the page with what `pick` makes of the records, in key order or against it, and says the
    /// next page's token. Records that `pick` passes over do not count, so this may take several reads.
    pub async fn fill<T: DeserializeOwned>(
        &self,
        store: &Store,
        reverse: bool,
        mut pick: impl FnMut(&str, T) -> Option<String>,
    ) -> Result<(Vec<String>, Option<String>), Error> {
        let mut picked = Vec::new();
        let mut after = self.after.clone();
        loop {
            let mut range = Range::prefix(&self.prefix).limit(self.limit);
            if reverse {
                range = range.reverse();
            }
            if let Some(after) = after.take() {
                range = range.after(after);
            }
            let found = store.range_json::<T>(range).await.map_err(internal)?;
            let count = found.entries.len();
            for (at, (key, record)) in found.entries.into_iter().enumerate() {
                picked.extend(pick(&key, record.value));
                let more = found.more || at + 1 < count;
                if picked.len() == self.limit {
                    return Ok((picked, more.then(|| self.token(&key))));
                }
                after = Some(key);
            }
            if !found.more {
                return Ok((picked, None));
            }
        }
    }

    /// The token for the page after `last`.
    pub fn token(&self, last: &str) -> String {
        let suffix = last.strip_prefix(&self.prefix).unwrap_or(last);
        let mut bytes = self.digest.to_vec();
        bytes.extend_from_slice(suffix.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn decode(token: &str, digest: [u8; DIGEST]) -> Option<String> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let suffix = bytes.strip_prefix(digest.as_slice())?;
    String::from_utf8(suffix.to_vec()).ok()
}

fn digest(prefix: &str, query: &[&str]) -> [u8; DIGEST] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in std::iter::once(&prefix).chain(query) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut short = [0; DIGEST];
    short.copy_from_slice(&context.finish().as_ref()[..DIGEST]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &[&str], token: Option<&str>, max: Option<i32>) -> Result<Page, Error> {
        Page::parse("ecs/cluster/1/r/".to_owned(), query, token, max, 1..=100)
    }

    #[test]
    fn a_token_continues_its_own_query_only() {
        let first = page(&["RUNNING"], None, Some(2)).unwrap();
        assert_eq!((first.limit, first.after.clone()), (2, None));
        let token = first.token("ecs/cluster/1/r/web");
        assert_eq!(page(&["RUNNING"], Some(&token), None).unwrap().after.unwrap(), "ecs/cluster/1/r/web");
        let long = "A".repeat(4096);
        for (query, bad) in [
            ("STOPPED", token.as_str()),
            ("RUNNING", "garbage"),
            ("RUNNING", "!!"),
            ("RUNNING", "ä"),
            ("RUNNING", long.as_str()),
        ] {
            let error = page(&[query], Some(bad), None).unwrap_err();
            assert_eq!(
                (error.code.as_str(), error.message.as_str()),
                ("InvalidParameterException", "Invalid token.")
            );
        }
    }

    #[test]
    fn pages_are_bounded() {
        assert_eq!(page(&[], None, None).unwrap().limit, 100);
        for max in [0, -1, 101] {
            assert!(page(&[], None, Some(max)).is_err());
        }
    }
}
