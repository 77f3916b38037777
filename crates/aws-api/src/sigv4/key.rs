//! Secret keys and what is derived of them.

use std::fmt;

use ring::hmac;
use subtle::ConstantTimeEq;

use super::TERMINATOR;

/// A secret access key. Debug hides it.
#[derive(Clone)]
pub struct SecretKey(String);

impl SecretKey {
    /// The key itself, to store or to print.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The key for one day, region and service. `date` is `YYYYMMDD`.
    pub fn derive(&self, date: &str, region: &str, service: &str) -> SigningKey {
        let start = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", self.0).as_bytes());
        let key = [date, region, service, TERMINATOR].iter().fold(start, |key, part| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
        });
        SigningKey(key)
    }
}

impl From<String> for SecretKey {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl From<&str> for SecretKey {
    fn from(key: &str) -> Self {
        Self(key.to_owned())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// A key derived for one day, region and service.
#[derive(Clone)]
pub struct SigningKey(hmac::Key);

impl SigningKey {
    /// The signature of a string to sign, in lower-case hexadecimal.
    pub(super) fn sign(&self, string_to_sign: &str) -> String {
        hex::encode(hmac::sign(&self.0, string_to_sign.as_bytes()))
    }

    /// Whether `signature` is that of the string to sign. Takes the same time wherever they differ.
    pub(super) fn matches(&self, string_to_sign: &str, signature: &str) -> bool {
        self.sign(string_to_sign).as_bytes().ct_eq(signature.as_bytes()).into()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}
