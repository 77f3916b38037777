//! GetCallerIdentity: whose key signed the request.

use aws_api::sts::{GetCallerIdentityRequest, GetCallerIdentityResponse};

use crate::api::Caller;

/// # Errors
/// None: whoever is authenticated may ask who they are.
pub async fn handle(
    (): (),
    caller: &Caller,
    _input: GetCallerIdentityRequest,
) -> Result<GetCallerIdentityResponse, aws_api::Error> {
    Ok(GetCallerIdentityResponse {
        // The root user's id is the account's.
        user_id: Some(caller.account.to_string()),
        account: Some(caller.account.to_string()),
        arn: Some(caller.principal_arn.clone()),
    })
}
