//! `DeleteLogStream`: deletes a log stream with its events.

use aws_api::Error;
use aws_api::logs::{DeleteLogStreamRequest, DeleteLogStreamResponse};

use super::{Logs, refusal};
use crate::api::Caller;

/// Serves `DeleteLogStream`.
///
/// # Errors
/// `ResourceNotFoundException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: DeleteLogStreamRequest,
) -> Result<DeleteLogStreamResponse, Error> {
    let scope = caller.scope();
    let deleted = logs.store.delete_stream(&scope, &input.log_group_name, &input.log_stream_name);
    deleted.await.map_err(refusal)?;
    Ok(DeleteLogStreamResponse {})
}
