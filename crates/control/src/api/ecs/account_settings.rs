//! Account settings: names, values, defaults, and what holds for a caller.
//!
//! Source: "Access Amazon ECS features with account settings" in the ECS developer guide.

use aws_api::Error;
use aws_api::ecs::Setting;
use serde::{Deserialize, Serialize};

use super::errors::invalid;
use super::{Caller, Ecs, records};

/// A setting with the values it may have; the first is the default.
pub(super) struct Known {
    pub name: &'static str,
    pub values: &'static [&'static str],
    /// Whether callers may change it.
    pub user: bool,
}

const fn user(name: &'static str, values: &'static [&'static str]) -> Known {
    Known { name, values, user: true }
}

pub(super) const KNOWN: &[Known] = &[
    user("awsvpcTrunking", &["disabled", "enabled"]),
    user("containerInsights", &["disabled", "enabled", "enhanced"]),
    user("containerInstanceLongArnFormat", &["enabled", "disabled"]),
    user("defaultLogDriverMode", &["non-blocking", "blocking"]),
    user("dualStackIPv6", &["enabled", "disabled"]),
    user("fargateEventWindows", &["disabled", "enabled"]),
    user("fargateFIPSMode", &["disabled", "enabled"]),
    user("fargateTaskRetirementWaitPeriod", &["7", "0", "14"]),
    Known { name: "guardDutyActivate", values: &["off", "on"], user: false },
    user("serviceLongArnFormat", &["enabled", "disabled"]),
    user("tagResourceAuthorization", &["on", "off"]),
    user("taskLongArnFormat", &["enabled", "disabled"]),
];

/// What a principal set, as stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub principal: String,
    pub name: String,
    pub value: String,
}

impl Record {
    pub fn to_wire(&self) -> Setting {
        setting(&self.name, &self.value, &self.principal)
    }
}

pub(super) fn setting(name: &str, value: &str, principal: &str) -> Setting {
    let kind = known(name).map_or("user", |k| if k.user { "user" } else { "aws_managed" });
    Setting {
        name: Some(name.to_owned()),
        value: Some(value.to_owned()),
        principal_arn: Some(principal.to_owned()),
        r#type: Some(kind.to_owned()),
    }
}

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// The principal whose settings are every other's defaults.
pub(super) fn root(caller: &Caller) -> String {
    format!("arn:aws:iam::{}:root", caller.account)
}

/// The principal that a request names, or the caller.
pub(super) fn principal(caller: &Caller, named: Option<&str>) -> Result<String, Error> {
    let Some(named) = named.filter(|n| !n.is_empty()) else { return Ok(caller.principal_arn.clone()) };
    let own = format!("arn:aws:iam::{}:", caller.account);
    let valid = named.strip_prefix(&own).is_some_and(|resource| {
        let characters = |c: char| c.is_ascii_alphanumeric() || "_+=,.@/-".contains(c);
        (resource == "root" || resource.starts_with("user/") || resource.starts_with("role/"))
            && named.len() <= 512
            && resource.chars().all(characters)
    });
    if !valid {
        return Err(invalid("The principal ARN must be the root user, a user or a role of this account."));
    }
    Ok(named.to_owned())
}

/// The name, if it is a setting's.
pub(super) fn checked_name(name: &str) -> Result<&'static Known, Error> {
    known(name).ok_or_else(|| {
        let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        invalid(format!("name should be one of [{}]", names.join(",")))
    })
}

/// Name and value, if callers may set them so.
pub(super) fn checked(name: &str, value: &str) -> Result<(), Error> {
    let known = checked_name(name)?;
    if !known.user {
        return Err(invalid(format!("The account setting {name} is managed by AWS and cannot be changed.")));
    }
    if !known.values.contains(&value) {
        return Err(invalid(format!("{name} should be one of [{}]", known.values.join(","))));
    }
    Ok(())
}

/// Sets it for `principal`.
pub(super) async fn put(
    ecs: &Ecs,
    caller: &Caller,
    principal: String,
    name: &str,
    value: &str,
) -> Result<Setting, Error> {
    checked(name, value)?;
    let record = Record { principal, name: name.to_owned(), value: value.to_owned() };
    let key = caller.scope().account_setting(&record.principal, name);
    records::commit(&ecs.store, store::Txn::new().put_json(key, &record)).await?;
    Ok(record.to_wire())
}

/// What holds for the caller: its own setting, or the account's, or AWS's default. `None` for a name
/// that is no setting.
pub(super) async fn effective(ecs: &Ecs, caller: &Caller, name: &str) -> Result<Option<String>, Error> {
    effective_for(ecs, caller, &caller.principal_arn, name).await
}

pub(super) async fn effective_for(
    ecs: &Ecs,
    caller: &Caller,
    principal: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    let Some(known) = known(name) else { return Ok(None) };
    for principal in [principal, &root(caller)] {
        let key = caller.scope().account_setting(principal, name);
        if let Some(record) = records::load::<Record>(&ecs.store, &key).await? {
            return Ok(Some(record.value.value));
        }
    }
    Ok(known.values.first().map(|value| (*value).to_owned()))
}
