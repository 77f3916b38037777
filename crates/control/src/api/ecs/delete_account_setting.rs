//! DeleteAccountSetting.

use aws_api::Error;
use aws_api::ecs::{DeleteAccountSettingRequest, DeleteAccountSettingResponse};
use store::Txn;

use super::{Caller, Ecs, account_settings, records};

/// Removes what a principal set: the account's default holds again, and is what is answered.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DeleteAccountSettingRequest,
) -> Result<DeleteAccountSettingResponse, Error> {
    let principal = account_settings::principal(caller, input.principal_arn.as_deref())?;
    account_settings::checked_name(&input.name)?;
    let key = caller.scope().account_setting(&principal, &input.name);
    records::commit(&ecs.store, Txn::new().delete(key)).await?;
    let value = account_settings::effective_for(ecs, caller, &principal, &input.name).await?;
    let setting = value.map(|value| account_settings::setting(&input.name, &value, &principal));
    Ok(DeleteAccountSettingResponse { setting })
}
