//! AWS Signature Version 4: verification for the server, signing for our own clients.
//!
//! Follows
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>
//! and, for chunked bodies,
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html>. Why it is our own:
//! `docs/decisions/0002-own-sigv4-verifier.md`.

mod authorization;
mod canonical;
mod chunked;
mod date;
mod key;
mod sign;
mod verify;

pub use authorization::scoped_service;
pub use key::{SecretKey, SigningKey};
pub use sign::{Credentials, sign};
pub use verify::{Verified, Verifier};

/// The algorithm's name in headers, queries and strings to sign.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The last part of a credential scope.
const TERMINATOR: &str = "aws4_request";

/// SHA-256 in lower-case hexadecimal.
fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}
