//! PutAccountSetting.

use aws_api::Error;
use aws_api::ecs::{PutAccountSettingRequest, PutAccountSettingResponse};

use super::{Caller, Ecs, account_settings};

/// Sets it for the caller or the principal that the request names.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: PutAccountSettingRequest,
) -> Result<PutAccountSettingResponse, Error> {
    let principal = account_settings::principal(caller, input.principal_arn.as_deref())?;
    let setting = account_settings::put(ecs, caller, principal, &input.name, &input.value).await?;
    Ok(PutAccountSettingResponse { setting: Some(setting) })
}
