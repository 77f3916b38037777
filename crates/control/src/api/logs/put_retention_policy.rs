//! `PutRetentionPolicy`: has a group's events expire.

use aws_api::Error;
use aws_api::logs::{PutRetentionPolicyRequest, PutRetentionPolicyResponse};

use super::{Logs, invalid, refusal};
use crate::api::Caller;
use crate::telemetry::logs::limits::RETENTION_DAYS;

/// Serves `PutRetentionPolicy`.
///
/// # Errors
/// `ResourceNotFoundException`; `InvalidParameterException` for a period that the service does not have.
pub async fn handle(
    logs: &Logs,
    caller: &Caller,
    input: PutRetentionPolicyRequest,
) -> Result<PutRetentionPolicyResponse, Error> {
    let days = u32::try_from(input.retention_in_days).ok().filter(|days| RETENTION_DAYS.contains(days));
    let Some(days) = days else {
        let allowed = RETENTION_DAYS.map(|days| days.to_string()).join(", ");
        return Err(invalid(format!(
            "1 validation error detected: Value '{}' at 'retentionInDays' failed to satisfy constraint: \
             Member must satisfy enum value set: [{allowed}]",
            input.retention_in_days
        )));
    };
    logs.store.set_retention(&caller.scope(), &input.log_group_name, Some(days)).await.map_err(refusal)?;
    Ok(PutRetentionPolicyResponse {})
}
