//! AWS Security Token Service.

pub mod get_caller_identity;

use aws_api::Routed;

use crate::api::answer::serve;
use crate::api::{Answer, Caller};

/// Serves one STS request.
///
/// # Errors
/// What the client did wrong, in the service's words.
pub async fn dispatch(caller: &Caller, routed: &Routed, body: &[u8]) -> Result<Answer, aws_api::Error> {
    serve!(aws_api::sts::operation, (), caller, routed, body, {
        GetCallerIdentity => get_caller_identity,
    })
}
