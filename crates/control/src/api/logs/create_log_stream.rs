//! `CreateLogStream`: makes a log stream.

use aws_api::Error;
use aws_api::logs::{CreateLogStreamRequest, CreateLogStreamResponse};

use super::{Logs, refusal};
use crate::api::Caller;

/// Serves `CreateLogStream`.
///
/// # Errors
/// `ResourceNotFoundException`, `ResourceAlreadyExistsException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: CreateLogStreamRequest,
) -> Result<CreateLogStreamResponse, Error> {
    let scope = caller.scope();
    let created = logs.store.create_stream(&scope, &input.log_group_name, &input.log_stream_name);
    created.await.map_err(refusal)?;
    Ok(CreateLogStreamResponse {})
}
