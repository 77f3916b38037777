//! `UntagResource`: removes tags of a log group by its ARN.

use aws_api::Error;
use aws_api::logs::{UntagResourceRequest, UntagResourceResponse};

use super::{Logs, group, refusal};
use crate::api::Caller;

/// Serves `UntagResource`.
///
/// # Errors
/// `ResourceNotFoundException`.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: UntagResourceRequest,
) -> Result<UntagResourceResponse, Error> {
    let name = group::name_of(caller, &input.resource_arn)?;
    logs.store.untag_group(&caller.scope(), &name, input.tag_keys).await.map_err(refusal)?;
    Ok(UntagResourceResponse {})
}
