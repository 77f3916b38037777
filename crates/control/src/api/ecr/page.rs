//! Page tokens: where the next page begins, opaque to clients.

use aws_api::Error;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::invalid_parameter;

/// Entries of a page when the client does not say (ECR API reference, `maxResults`).
const DEFAULT: usize = 100;

/// The page's size; the model has bounded `max_results`.
pub fn size(max_results: Option<i32>) -> usize {
    max_results.and_then(|max| usize::try_from(max).ok()).filter(|max| *max > 0).unwrap_or(DEFAULT)
}

/// A token that says that the last page ended with `last`.
pub fn token(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

/// What the last page ended with, read by `parse`.
pub fn after<T>(token: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
    let Some(token) = token else { return Ok(None) };
    let last = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match last.as_deref().and_then(parse) {
        Some(last) => Ok(Some(last)),
        None => Err(invalid_parameter("nextToken", "Invalid token")),
    }
}
