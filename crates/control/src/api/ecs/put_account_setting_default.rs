//! PutAccountSettingDefault.

use aws_api::Error;
use aws_api::ecs::{PutAccountSettingDefaultRequest, PutAccountSettingDefaultResponse};

use super::{Caller, Ecs, account_settings};

/// Sets it for all who have not set their own.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: PutAccountSettingDefaultRequest,
) -> Result<PutAccountSettingDefaultResponse, Error> {
    let root = account_settings::root(caller);
    let setting = account_settings::put(ecs, caller, root, &input.name, &input.value).await?;
    Ok(PutAccountSettingDefaultResponse { setting: Some(setting) })
}
