//! `UntagLogGroup`: removes tags of a log group by its name (deprecated by AWS for `UntagResource`).

use aws_api::Error;
use aws_api::logs::{UntagLogGroupRequest, UntagLogGroupResponse};

use super::{Logs, refusal};
use crate::api::Caller;

/// Serves `UntagLogGroup`.
///
/// # Errors
/// `ResourceNotFoundException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: UntagLogGroupRequest,
) -> Result<UntagLogGroupResponse, Error> {
    logs.store.untag_group(&caller.scope(), &input.log_group_name, input.tags).await.map_err(refusal)?;
    Ok(UntagLogGroupResponse {})
}
