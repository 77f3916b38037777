//! Names and ARNs of log groups.

use std::collections::BTreeMap;

use aws_api::Error;
use aws_api::logs::error;
use model::arn::Arn;

use super::invalid;
use crate::api::Caller;
use crate::telemetry::logs::LogError;

/// `arn:aws:logs:REGION:ACCOUNT:log-group:NAME`.
pub(super) fn arn(caller: &Caller, name: &str) -> String {
    Arn::new("logs", &caller.region, &caller.account, format!("log-group:{name}")).to_string()
}

/// The name in a `logGroupIdentifier`: a name, or an ARN with or without `:*`.
pub(super) fn name_of(caller: &Caller, identifier: &str) -> Result<String, Error> {
    if !identifier.starts_with("arn:") {
        return Ok(identifier.to_owned());
    }
    let refused = || invalid(format!("{identifier} is not the ARN of a log group."));
    let arn = Arn::parse(identifier).filter(|arn| arn.service == "logs").ok_or_else(refused)?;
    let name = arn.resource.strip_prefix("log-group:").ok_or_else(refused)?;
    let name = name.strip_suffix(":*").unwrap_or(name);
    if name.is_empty() || name.contains(':') {
        return Err(refused());
    }
    if arn.account != caller.account || arn.region != caller.region {
        return Err(error::resource_not_found_exception(LogError::GroupNotFound.to_string()));
    }
    Ok(name.to_owned())
}

/// The group of a request that takes a name or an identifier, but not both.
pub(super) fn either(caller: &Caller, name: Option<&str>, identifier: Option<&str>) -> Result<String, Error> {
    match (name, identifier) {
        (Some(name), None) => Ok(name.to_owned()),
        (None, Some(identifier)) => name_of(caller, identifier),
        (Some(_), Some(_)) => {
            Err(invalid("LogGroupName and LogGroupIdentifier are mutually exclusive: give one of them."))
        }
        (None, None) => Err(invalid("Either LogGroupName or LogGroupIdentifier must be given.")),
    }
}

/// Refuses tag keys that AWS keeps for itself ("Tag restrictions" in the Tagging user guide).
pub(super) fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Error> {
    match tags.keys().find(|key| key.to_ascii_lowercase().starts_with("aws:")) {
        Some(key) => Err(invalid(format!("The tag key {key} begins with aws:, which is reserved."))),
        None => Ok(()),
    }
}
