//! Verifies a request's signature.

use bytes::Bytes;
use http::request::Parts;

use super::authorization::Claim;
use super::canonical::{Canonical, PathStyle, Query, string_to_sign};
use super::chunked::{self, Chunking};
use super::{SecretKey, date, sha256_hex};
use crate::error::common;
use crate::{Error, Service, Timestamp};

/// How often a header may be signed for a request.
const MAX_SIGNED_HEADERS: usize = 100;

/// Headers that decide what a request does. A signature that leaves one of them out could be moved
/// to another request, so they must be signed when they are there.
const MUST_BE_SIGNED: [&str; 4] = ["host", "x-amz-target", "x-amz-security-token", "x-amz-content-sha256"];

/// Verifies signatures. It neither reads a clock nor looks up keys: both are given.
#[derive(Clone, Copy, Debug)]
pub struct Verifier {
    /// By how many seconds a client's clock may differ. AWS allows 5 minutes.
    pub max_skew: i64,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { max_skew: 300 }
    }
}

/// Who signed a request, and for what.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The access key's id.
    pub access_key_id: String,
    /// The scope's region.
    pub region: String,
    /// The scope's service (a signing name).
    pub service: String,
    /// The session token of temporary credentials: the caller checks that it belongs to the key.
    pub session_token: Option<crate::Sensitive<String>>,
    /// The body, with a chunked one's framing removed.
    pub body: Bytes,
}

impl Verified {
    /// Refuses a signature made for another service or region.
    ///
    /// # Errors
    /// InvalidSignatureException.
    pub fn check_scope(&self, service: Service, region: &str) -> Result<(), Error> {
        let name = service.info().signing_name;
        if self.service != name {
            return Err(common::invalid_signature(format!(
                "Credential should be scoped to correct service: '{name}'. "
            )));
        }
        if self.region != region {
            return Err(common::invalid_signature(format!(
                "Credential should be scoped to a valid region, not '{}'. ",
                self.region
            )));
        }
        Ok(())
    }
}

impl Verifier {
    /// Verifies the signature of a request, in its `Authorization` header or its query. `lookup`
    /// gives the secret of an access key's id.
    ///
    /// # Errors
    /// MissingAuthenticationTokenException, IncompleteSignatureException,
    /// InvalidSignatureException, UnrecognizedClientException, in AWS's words.
    pub fn verify(
        &self,
        parts: &Parts,
        body: &Bytes,
        now: Timestamp,
        lookup: impl Fn(&str) -> Option<SecretKey>,
    ) -> Result<Verified, Error> {
        let query = Query::parse(parts.uri.query());
        let claim = Claim::parse(parts, &query)?;
        require_signed(parts, &claim)?;
        self.check_time(&claim, now)?;

        // An unknown key is told apart from a wrong signature, as AWS does: ids are no secret.
        let secret = lookup(&claim.scope.access_key_id).ok_or_else(common::unrecognized_client)?;
        let scope = &claim.scope;
        let key = secret.derive(&scope.date, &scope.region, &scope.service);

        let payload = Payload::of(parts, body, &claim)?;
        let canonical = Canonical {
            parts,
            query: &query,
            style: PathStyle::of(&scope.service),
            signed_headers: &claim.signed_headers,
            payload_hash: &payload.hash,
        };
        let time = date::format(claim.time);
        let text = string_to_sign(&time, &scope.text(), &canonical.hash());
        if !key.matches(&text, &claim.signature) {
            return Err(mismatch());
        }

        let body = match payload.chunking {
            None => body.clone(),
            Some(chunking) => {
                let signer = chunked::Signer { key: &key, time: &time, scope: &scope.text() };
                chunked::decode(parts, body, chunking, &signer, &claim.signature)?
            }
        };
        Ok(Verified {
            access_key_id: claim.scope.access_key_id,
            region: claim.scope.region,
            service: claim.scope.service,
            session_token: claim.session_token.map(Into::into),
            body,
        })
    }

    fn check_time(&self, claim: &Claim, now: Timestamp) -> Result<(), Error> {
        let time = date::format(claim.time);
        if time.get(..8) != Some(&claim.scope.date) {
            return Err(common::invalid_signature(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date \
                 from HTTP: '{}' != '{}', from '{time}'.",
                claim.scope.date,
                time.get(..8).unwrap_or_default(),
            )));
        }
        let seconds = |time: Timestamp| time.as_millis().div_euclid(1000);
        let text = |seconds: i64| date::format(Timestamp::from_millis(seconds * 1000));
        let (signed, now) = (seconds(claim.time), seconds(now));
        let minutes = self.max_skew / 60;
        if signed > now.saturating_add(self.max_skew) {
            return Err(common::invalid_signature(format!(
                "Signature not yet current: {time} is still later than {} ({} + {minutes} min.)",
                text(now.saturating_add(self.max_skew)),
                text(now),
            )));
        }
        if let Some(expires) = claim.expires {
            if signed.saturating_add(expires) < now {
                return Err(common::invalid_signature(format!(
                    "Signature expired: {} is now earlier than {}",
                    text(signed.saturating_add(expires)),
                    text(now),
                )));
            }
        } else if signed < now.saturating_sub(self.max_skew) {
            return Err(common::invalid_signature(format!(
                "Signature expired: {time} is now earlier than {} ({} - {minutes} min.)",
                text(now.saturating_sub(self.max_skew)),
                text(now),
            )));
        }
        Ok(())
    }
}

fn mismatch() -> Error {
    common::invalid_signature(
        "The request signature we calculated does not match the signature you provided. Check your \
         AWS Secret Access Key and signing method. Consult the service documentation for details.",
    )
}

fn require_signed(parts: &Parts, claim: &Claim) -> Result<(), Error> {
    let names = &claim.signed_headers;
    if names.len() > MAX_SIGNED_HEADERS {
        return Err(common::incomplete_signature("Too many signed headers."));
    }
    for required in MUST_BE_SIGNED {
        let present = required == "host" || parts.headers.contains_key(required);
        if !present || names.iter().any(|name| name == required) {
            continue;
        }
        return Err(common::invalid_signature(match required {
            "host" => "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.".to_owned(),
            other => format!("'{other}' must be a 'SignedHeader' in the AWS Authorization."),
        }));
    }
    Ok(())
}

/// What the signature says of the body.
struct Payload {
    hash: String,
    chunking: Option<Chunking>,
}

impl Payload {
    fn of(parts: &Parts, body: &Bytes, claim: &Claim) -> Result<Self, Error> {
        let header = parts.headers.get("x-amz-content-sha256");
        let Some(header) = header.map(|value| value.to_str().unwrap_or_default()) else {
            // S3's presigned requests cannot know the body.
            let unsigned = claim.presigned && PathStyle::of(&claim.scope.service) == PathStyle::Verbatim;
            let hash = if unsigned { UNSIGNED.to_owned() } else { sha256_hex(body) };
            return Ok(Self { hash, chunking: None });
        };
        let chunking = Chunking::named(header);
        let is_unsigned = header == UNSIGNED || chunking.is_some_and(Chunking::is_unsigned);
        if is_unsigned && PathStyle::of(&claim.scope.service) != PathStyle::Verbatim {
            // S3's alone: other services hash the body that they got, so that nobody between can
            // change it. SDKs sign every body of theirs.
            return Err(common::invalid_signature(format!(
                "'x-amz-content-sha256' must be the SHA-256 of the body: only Amazon S3 takes '{header}'.",
            )));
        }
        if header != UNSIGNED && chunking.is_none() && header != sha256_hex(body) {
            return Err(common::invalid_signature(
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            ));
        }
        Ok(Self { hash: header.to_owned(), chunking })
    }
}

/// The header's value for a body that is not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
