//! Idempotence of RunTask: a token stands for one request and the tasks that it started.
//!
//! Source: "Ensuring idempotency" in the ECS developer guide.

use aws_api::Error;
use aws_api::ecs::RunTaskRequest;
use model::{TaskId, Timestamp};
use serde::{Deserialize, Serialize};

use super::errors::{corrupt, invalid};

/// How long a token is remembered, in milliseconds: 24 hours.
const LIFETIME: i64 = 24 * 60 * 60 * 1000;

/// What a token stands for, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// SHA-256 of the request without its token, in hex.
    pub request: String,
    pub tasks: Vec<TaskId>,
    pub created_at: Timestamp,
}

impl Record {
    pub fn expired(&self, now: Timestamp) -> bool {
        now.since(self.created_at) >= LIFETIME
    }
}

/// Up to 64 characters of the range 33 to 126.
pub(super) fn check(token: &str) -> Result<(), Error> {
    if token.is_empty() || token.len() > 64 || !token.bytes().all(|b| (33..=126).contains(&b)) {
        return Err(invalid("clientToken must have 1 to 64 characters in the range of 33-126."));
    }
    Ok(())
}

/// What makes two requests the same. The order of members does not matter: the request was parsed.
pub(super) fn digest(request: &RunTaskRequest) -> Result<String, Error> {
    let request = RunTaskRequest { client_token: None, ..request.clone() };
    let bytes = serde_json::to_vec(&request).map_err(|e| corrupt("run request", &e))?;
    Ok(hex::encode(ring::digest::digest(&ring::digest::SHA256, &bytes)))
}
