//! ListAccountSettings.

use aws_api::Error;
use aws_api::ecs::{ListAccountSettingsRequest, ListAccountSettingsResponse, Setting};

use super::account_settings::{self, KNOWN, Record};
use super::errors::invalid;
use super::page::Page;
use super::{Caller, Ecs, records};

/// Lists what a principal set, or with `effectiveSettings` what holds for it.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: ListAccountSettingsRequest,
) -> Result<ListAccountSettingsResponse, Error> {
    let principal = account_settings::principal(caller, input.principal_arn.as_deref())?;
    let effective = input.effective_settings.unwrap_or(false);
    if let Some(name) = &input.name {
        account_settings::checked_name(name)?;
    } else if input.value.is_some() {
        return Err(invalid("A setting name must be specified when a value is specified."));
    }
    let page = Page::parse(
        String::new(),
        &[
            "ListAccountSettings",
            &principal,
            input.name.as_deref().unwrap_or_default(),
            input.value.as_deref().unwrap_or_default(),
            if effective { "effective" } else { "own" },
        ],
        input.next_token.as_deref(),
        input.max_results,
        1..=10,
    )?;
    let mut settings: Vec<Setting> = Vec::new();
    let mut next_token = None;
    // In name order, as the table is.
    let names = KNOWN.iter().map(|known| known.name);
    for name in names.filter(|name| page.after.as_deref().is_none_or(|after| *name > after)) {
        if input.name.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let setting = if effective {
            let value = account_settings::effective_for(ecs, caller, &principal, name).await?;
            value.map(|value| account_settings::setting(name, &value, &principal))
        } else {
            let key = caller.scope().account_setting(&principal, name);
            records::load::<Record>(&ecs.store, &key).await?.map(|record| record.value.to_wire())
        };
        let Some(setting) = setting else { continue };
        if input.value.is_some() && setting.value != input.value {
            continue;
        }
        if settings.len() == page.limit {
            next_token = settings.last().and_then(|last| last.name.as_deref()).map(|last| page.token(last));
            break;
        }
        settings.push(setting);
    }
    Ok(ListAccountSettingsResponse { settings: Some(settings), next_token })
}
