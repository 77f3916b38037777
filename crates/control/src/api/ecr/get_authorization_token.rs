//! GetAuthorizationToken: the password for `docker login -u AWS`, good for 12 hours.

use aws_api::Error;
use aws_api::Timestamp;
use aws_api::ecr::error;
use aws_api::ecr::{AuthorizationData, GetAuthorizationTokenRequest, GetAuthorizationTokenResponse};

use super::target::namespace;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: GetAuthorizationTokenRequest,
) -> Result<GetAuthorizationTokenResponse, Error> {
    let ids = input.registry_ids.unwrap_or_else(|| vec![caller.account.to_string()]);
    if let Some(other) = ids.iter().find(|id| id.as_str() != caller.account.as_str()) {
        return Err(error::invalid_parameter_exception(format!(
            "The registry with id '{other}' is not the caller's: tokens are made for the own account only"
        )));
    }
    let data = ids.iter().map(|_| {
        let (token, expires_at) = registry.mint_token(&namespace(caller), &caller.principal_arn);
        AuthorizationData {
            authorization_token: Some(token.authorization_data().into()),
            expires_at: Some(Timestamp::from_millis(expires_at)),
            proxy_endpoint: Some(registry.endpoint()),
        }
    });
    Ok(GetAuthorizationTokenResponse { authorization_data: Some(data.collect()) })
}
