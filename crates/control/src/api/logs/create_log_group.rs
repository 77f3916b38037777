//! `CreateLogGroup`: makes a log group.

use aws_api::Error;
use aws_api::logs::{CreateLogGroupRequest, CreateLogGroupResponse};

use super::{Logs, group, invalid, refusal};
use crate::api::Caller;
use crate::telemetry::logs::NewGroup;

/// Serves `CreateLogGroup`.
///
/// # Errors
/// `ResourceAlreadyExistsException`; `InvalidParameterException` for reserved names and tags.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: CreateLogGroupRequest,
) -> Result<CreateLogGroupResponse, Error> {
    if input.log_group_name.starts_with("aws/") {
        return Err(invalid("Log groups starting with AWS/ are reserved for AWS."));
    }
    let tags = input.tags.unwrap_or_default();
    group::check_tags(&tags)?;
    let new = NewGroup {
        name: input.log_group_name,
        class: input.log_group_class.unwrap_or_default(),
        kms_key_id: input.kms_key_id,
        deletion_protection: input.deletion_protection_enabled.unwrap_or_default(),
        tags,
    };
    logs.store.create_group(&caller.scope(), new).await.map_err(refusal)?;
    Ok(CreateLogGroupResponse {})
}
