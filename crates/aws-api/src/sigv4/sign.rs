//! Signs a request.

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Request};

use super::authorization::Scope;
use super::canonical::{Canonical, PathStyle, Query, string_to_sign};
use super::{ALGORITHM, SecretKey, date, sha256_hex};
use crate::{Sensitive, Timestamp};

/// Whose signature to make.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The access key's id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_key: SecretKey,
    /// The session token of temporary credentials.
    pub session_token: Option<Sensitive<String>>,
}

/// Headers that proxies and transports change, and so must not be signed.
const UNSIGNED: [&str; 6] =
    ["connection", "expect", "transfer-encoding", "user-agent", "x-amzn-trace-id", "authorization"];

/// Signs a request in its `Authorization` header, replacing one that is there. It adds `Host`,
/// `X-Amz-Date` and `X-Amz-Security-Token`. `service` is a signing name.
///
/// # Errors
/// If a credential, the region or the service holds what a header cannot.
pub fn sign(
    request: &mut Request<Bytes>,
    credentials: &Credentials,
    region: &str,
    service: &str,
    time: Timestamp,
) -> Result<(), http::Error> {
    let time = date::format(time);
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
    {
        let host = HeaderValue::from_str(authority.as_str())?;
        request.headers_mut().insert(HOST, host);
    }
    set(request.headers_mut(), "x-amz-date", &time)?;
    if let Some(token) = &credentials.session_token {
        set(request.headers_mut(), "x-amz-security-token", token)?;
    }

    let scope = Scope {
        access_key_id: credentials.access_key_id.clone(),
        date: time.get(..8).unwrap_or_default().to_owned(),
        region: region.to_owned(),
        service: service.to_owned(),
    };
    let mut names: Vec<String> = request.headers().keys().map(|name| name.to_string()).collect();
    names.retain(|name| !UNSIGNED.contains(&name.as_str()));
    names.sort();
    names.dedup();
    let (parts, body) = std::mem::take(request).into_parts();
    let canonical = Canonical {
        parts: &parts,
        query: &Query::parse(parts.uri.query()),
        style: PathStyle::of(service),
        signed_headers: &names,
        payload_hash: &sha256_hex(&body),
    };
    let text = string_to_sign(&time, &scope.text(), &canonical.hash());
    let key = credentials.secret_key.derive(&scope.date, region, service);
    let authorization = format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={}",
        scope.access_key_id,
        scope.text(),
        names.join(";"),
        key.sign(&text)
    );
    *request = Request::from_parts(parts, body);
    set(request.headers_mut(), AUTHORIZATION.as_str(), &authorization)
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), http::Error> {
    let mut value = HeaderValue::from_str(value)?;
    value.set_sensitive(name != "x-amz-date");
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}
