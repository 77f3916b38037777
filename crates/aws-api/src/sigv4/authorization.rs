//! The claims of a request's signature, from its header or its query.

use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use http::request::Parts;

use super::canonical::Query;
use super::{ALGORITHM, TERMINATOR, date};
use crate::error::common;
use crate::{Error, Timestamp};

/// Where a request says who signed it, and how.
#[derive(Debug)]
pub struct Claim {
    pub scope: Scope,
    /// In lower case, in the request's order.
    pub signed_headers: Vec<String>,
    pub signature: String,
    pub time: Timestamp,
    /// For how many seconds the request is valid; presigned requests may say so.
    pub expires: Option<i64>,
    pub session_token: Option<String>,
    pub presigned: bool,
}

/// A credential: the access key's id and what its signing key is derived for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub access_key_id: String,
    pub date: String,
    pub region: String,
    pub service: String,
}

impl Scope {
    /// Reads `AKID/20150830/us-east-1/ecs/aws4_request`.
    fn parse(credential: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = credential.split('/').collect();
        let [access_key_id, date, region, service, terminator] = parts[..] else {
            return Err(common::incomplete_signature(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term, got '{credential}'"
            )));
        };
        if terminator != TERMINATOR {
            return Err(common::invalid_signature(format!(
                "Credential should be scoped with a valid terminator: '{TERMINATOR}', not \
                 '{terminator}'."
            )));
        }
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            date: date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
        })
    }

    /// As the string to sign has it: without the access key.
    pub fn text(&self) -> String {
        format!("{}/{}/{}/{TERMINATOR}", self.date, self.region, self.service)
    }
}

/// The service in the scope of a request's signature, not yet verified.
pub fn scoped_service(parts: &Parts) -> Option<String> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let credential = match header {
        Some(header) => {
            let (_, rest) = header.split_once("Credential=")?;
            rest.split([',', ' ']).next()?.to_owned()
        }
        None => Query::parse(parts.uri.query()).get("X-Amz-Credential")?.to_owned(),
    };
    credential.split('/').nth(3).map(str::to_owned)
}

impl Claim {
    /// Reads the `Authorization` header or the presigned query, whichever there is.
    pub fn parse(parts: &Parts, query: &Query) -> Result<Self, Error> {
        let presigned = query.get("X-Amz-Algorithm").is_some()
            || query.get("X-Amz-Credential").is_some()
            || query.get("X-Amz-Signature").is_some();
        match (parts.headers.contains_key(AUTHORIZATION), presigned) {
            (false, false) => Err(common::missing_authentication_token()),
            (true, true) => Err(common::incomplete_signature(
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, \
                 Signature query string parameter or the Authorization header should be specified",
            )),
            (true, false) => Self::from_header(&parts.headers),
            (false, true) => Self::from_query(query),
        }
    }

    fn from_header(headers: &HeaderMap) -> Result<Self, Error> {
        let header = single(headers, AUTHORIZATION.as_str())?.unwrap_or_default();
        let (algorithm, rest) = header.split_once(' ').unwrap_or((header, ""));
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            let Some((name, value)) = part.split_once('=') else {
                return Err(common::incomplete_signature(format!(
                    "'{part}' not a valid key=value pair (missing equal-sign) in Authorization \
                     header: '{}'.",
                    shown(header)
                )));
            };
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(common::incomplete_signature(format!(
                    "Authorization header has more than one '{name}' parameter."
                )));
            }
        }
        let date = claimed_date(headers)?;
        let mut missing = String::new();
        for (name, value) in
            [("Credential", credential), ("Signature", signature), ("SignedHeaders", signed_headers)]
        {
            if value.is_none_or(str::is_empty) {
                missing.push_str(&format!("Authorization header requires '{name}' parameter. "));
            }
        }
        if date.is_none() {
            missing.push_str(
                "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' \
                 header. ",
            );
        }
        if algorithm != ALGORITHM && missing.is_empty() {
            return Err(common::incomplete_signature(format!("Unsupported AWS 'algorithm': '{algorithm}'.")));
        }
        let (Some(credential), Some(signed_headers), Some(signature), Some(time), true) =
            (credential, signed_headers, signature, date, missing.is_empty())
        else {
            return Err(common::incomplete_signature(missing.trim_end()));
        };
        Ok(Self {
            scope: Scope::parse(credential)?,
            signed_headers: split_headers(signed_headers),
            signature: signature.to_owned(),
            time,
            expires: None,
            session_token: single(headers, "x-amz-security-token")?.map(str::to_owned),
            presigned: false,
        })
    }

    fn from_query(query: &Query) -> Result<Self, Error> {
        let mut missing = String::new();
        let mut required = |name: &str| match query.single(name) {
            Ok(Some(value)) if !value.is_empty() => Some(value.to_owned()),
            _ => {
                missing.push_str(&format!("AWS query-string parameters must include '{name}'. "));
                None
            }
        };
        let (algorithm, credential, signature, signed_headers, time) = (
            required("X-Amz-Algorithm"),
            required("X-Amz-Credential"),
            required("X-Amz-Signature"),
            required("X-Amz-SignedHeaders"),
            required("X-Amz-Date"),
        );
        let (Some(algorithm), Some(credential), Some(signature), Some(signed_headers), Some(time)) =
            (algorithm, credential, signature, signed_headers, time)
        else {
            missing.push_str("Re-examine the query-string parameters.");
            return Err(common::incomplete_signature(missing));
        };
        if algorithm != ALGORITHM {
            return Err(common::incomplete_signature(format!("Unsupported AWS 'algorithm': '{algorithm}'.")));
        }
        let repeated = |name: &str| {
            let message = format!("AWS query-string parameter '{name}' occurs more than once.");
            common::incomplete_signature(message)
        };
        let expires = query.single("X-Amz-Expires").map_err(|()| repeated("X-Amz-Expires"))?;
        let token = query.single("X-Amz-Security-Token");
        Ok(Self {
            scope: Scope::parse(&credential)?,
            signed_headers: split_headers(&signed_headers),
            signature,
            time: date::parse(&time).ok_or_else(|| bad_date(&time))?,
            expires: expires.map(parse_expires).transpose()?,
            session_token: token.map_err(|()| repeated("X-Amz-Security-Token"))?.map(str::to_owned),
            presigned: true,
        })
    }
}

/// `X-Amz-Date`, else `Date`, which is either form.
fn claimed_date(headers: &HeaderMap) -> Result<Option<Timestamp>, Error> {
    if let Some(text) = single(headers, "x-amz-date")? {
        return date::parse(text).map(Some).ok_or_else(|| bad_date(text));
    }
    let Some(text) = single(headers, DATE.as_str())? else {
        return Ok(None);
    };
    date::parse(text).or_else(|| date::parse_http(text)).map(Some).ok_or_else(|| bad_date(text))
}

/// 1 second to 7 days.
fn parse_expires(text: &str) -> Result<i64, Error> {
    const WEEK: i64 = 604_800;
    match text.parse::<i64>() {
        Ok(seconds) if (1..=WEEK).contains(&seconds) => Ok(seconds),
        Ok(seconds) if seconds > WEEK => Err(common::incomplete_signature(format!(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires \
             must be less than {WEEK} seconds"
        ))),
        Ok(_) => Err(common::incomplete_signature("X-Amz-Expires must be non-negative")),
        Err(_) => Err(common::incomplete_signature("X-Amz-Expires should be a number")),
    }
}

fn bad_date(text: &str) -> Error {
    common::incomplete_signature(format!(
        "Date must be in ISO-8601 'basic format'. Got '{}'. See \
         http://en.wikipedia.org/wiki/ISO_8601",
        shown(text)
    ))
}

/// A header that may occur once, trimmed.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    let refusal = |problem: &str| common::incomplete_signature(format!("'{name}' {problem}."));
    if values.next().is_some() {
        return Err(refusal("occurs more than once"));
    }
    first.map(|value| value.to_str().map(str::trim).map_err(|_| refusal("is not ASCII text"))).transpose()
}

fn split_headers(list: &str) -> Vec<String> {
    list.split(';').map(str::to_ascii_lowercase).collect()
}

/// As much of a text as a message repeats. It holds no secret: a signature proves nothing without
/// its request.
fn shown(text: &str) -> &str {
    match text.char_indices().nth(256) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}
