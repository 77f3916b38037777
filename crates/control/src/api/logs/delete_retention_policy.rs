//! `DeleteRetentionPolicy`: has a group's events kept for ever.

use aws_api::Error;
use aws_api::logs::{DeleteRetentionPolicyRequest, DeleteRetentionPolicyResponse};

use super::{Logs, refusal};
use crate::api::Caller;

/// Serves `DeleteRetentionPolicy`.
///
/// # Errors
/// `ResourceNotFoundException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: DeleteRetentionPolicyRequest,
) -> Result<DeleteRetentionPolicyResponse, Error> {
    logs.store.set_retention(&caller.scope(), &input.log_group_name, None).await.map_err(refusal)?;
    Ok(DeleteRetentionPolicyResponse {})
}
