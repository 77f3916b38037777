//! `DeleteLogGroup`: deletes a log group with its streams and events.

use aws_api::Error;
use aws_api::logs::{DeleteLogGroupRequest, DeleteLogGroupResponse};

use super::{Logs, refusal};
use crate::api::Caller;

/// Serves `DeleteLogGroup`.
///
/// # Errors
/// `ResourceNotFoundException`; `ValidationException` when it is protected from deletion.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: DeleteLogGroupRequest,
) -> Result<DeleteLogGroupResponse, Error> {
    logs.store.delete_group(&caller.scope(), &input.log_group_name).await.map_err(refusal)?;
    Ok(DeleteLogGroupResponse {})
}
