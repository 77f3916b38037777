//! Authorization tokens: what `GetAuthorizationToken` hands out and every `/v2/` request carries.
//!
//! A token is its claims and an HMAC-SHA256 over them; nothing is stored per token. The key is 32
//! random bytes kept in the store, so a token outlives a restart and is worthless elsewhere.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::name::{Digest, Namespace, RepositoryName};

/// The user name that goes with every token (ECR user guide, "Private registry authentication").
pub const USER: &str = "AWS";

/// No genuine token is longer: names and ARNs are bounded.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// What a token permits. There is nothing wider than one account in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Push, pull and delete in every repository of the registry.
    Registry,
    /// Pull from one repository: what an agent gets for a task.
    Pull {
        /// The only repository that can be read.
        repository: RepositoryName,
    },
    /// Read one blob: what a download URL carries.
    Blob {
        /// The repository that the blob is read through.
        repository: RepositoryName,
        /// The only blob that can be read.
        digest: Digest,
    },
}

/// Who a token was made for, what it permits, and until when (seconds since 1970, UTC).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Account and region.
    #[serde(flatten)]
    pub namespace: Namespace,
    /// ARN of the caller that asked for it.
    pub principal: String,
    /// What it permits.
    pub access: Access,
    /// When it was made.
    pub issued_at: i64,
    /// From this second on it is refused.
    pub expires_at: i64,
}

/// A token as clients present it: the password that goes with [`USER`]. Never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret itself.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// The value of an `Authorization` header that presents this token.
    pub fn basic_authorization(&self) -> String {
        format!("Basic {}", self.authorization_data())
    }

    /// `AWS:<token>` in base64: `authorizationToken` of `GetAuthorizationToken`.
    pub fn authorization_data(&self) -> String {
        STANDARD.encode(format!("{USER}:{}", self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was not made with this registry's key, or was changed.
    #[error("the authorization token is not valid")]
    Invalid,
    /// Its time is over.
    #[error("the authorization token has expired: log in again")]
    Expired,
}

/// The key that signs tokens.
#[derive(Clone)]
pub struct TokenKey(hmac::Key);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl TokenKey {
    /// A key of these 32 bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Signs these claims.
    pub fn sign(&self, claims: &Claims) -> Token {
        let claims = serde_json::to_vec(claims).expect("claims are plain strings and integers");
        let signature = hmac::sign(&self.0, &claims);
        Token(format!("{}.{}", URL_SAFE_NO_PAD.encode(&claims), URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key signed and that has not expired at `now` (seconds since
    /// 1970, UTC). The signature is compared in constant time, before anything else is read.
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let (claims, signature) = token.split_once('.').ok_or(TokenError::Invalid)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Invalid);
        let (claims, signature) = (decode(claims)?, decode(signature)?);
        hmac::verify(&self.0, &claims, &signature).map_err(|_| TokenError::Invalid)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Invalid)?;
        if now >= claims.expires_at {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

/// The password of a `Basic` authorization header for [`USER`], if that is what it is (RFC 7617).
pub fn basic_password(header: &str) -> Option<String> {
    let (scheme, credentials) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || credentials.len() > 2 * MAX_TOKEN_BYTES {
        return None;
    }
    let credentials = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (user, password) = credentials.split_once(':')?;
    (user == USER).then(|| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(access: Access) -> Claims {
        Claims {
            namespace: Namespace {
                account: model::AccountId::parse("123456789012").unwrap(),
                region: model::Region::parse("eu-west-1").unwrap(),
            },
            principal: "arn:aws:iam::123456789012:root".to_owned(),
            access,
            issued_at: 1_000,
            expires_at: 2_000,
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_only_under_its_key() {
        let key = TokenKey::new(&[7; 32]);
        for access in [
            Access::Registry,
            Access::Pull { repository: "team/app".parse().unwrap() },
            Access::Blob { repository: "team/app".parse().unwrap(), digest: Digest::of(b"x") },
        ] {
            let claims = claims(access);
            let token = key.sign(&claims);
            assert_eq!(key.verify(token.secret(), 1_999), Ok(claims));
            assert_eq!(key.verify(token.secret(), 2_000), Err(TokenError::Expired));
            let other = TokenKey::new(&[8; 32]);
            assert_eq!(other.verify(token.secret(), 1_500), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn a_changed_token_is_refused() {
        let key = TokenKey::new(&[7; 32]);
        let token = key.sign(&claims(Access::Registry));
        for index in 0..token.secret().len() {
            let mut bytes = token.secret().as_bytes().to_vec();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            // The last digit of a base64 group has bits that do not count; refused all the same.
            assert_eq!(key.verify(&changed, 1_500), Err(TokenError::Invalid));
        }
        for garbage in ["", ".", "a.b", &"x".repeat(1 << 20)] {
            assert_eq!(key.verify(garbage, 0), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn the_header_is_basic_for_aws() {
        let token = Token("secret".to_owned());
        assert_eq!(basic_password(&token.basic_authorization()).as_deref(), Some("secret"));
        assert_eq!(format!("{token:?}"), "Token(..)");
        let other = format!("Basic {}", STANDARD.encode("root:secret"));
        for bad in [other.as_str(), "Bearer x", "Basic", "Basic !!", "Basic "] {
            assert_eq!(basic_password(bad), None, "{bad}");
        }
    }
}
