//! `settings` and `configuration` of clusters: checks and forms.

use std::collections::BTreeMap;

use aws_api::Error;
use aws_api::ecs::{ClusterConfiguration, ClusterServiceConnectDefaultsRequest, ClusterSetting};
use serde_json::Value;

use super::errors::{corrupt, invalid};

/// The request's settings by name.
pub(super) fn checked(settings: &[ClusterSetting]) -> Result<BTreeMap<String, String>, Error> {
    let mut checked = BTreeMap::new();
    for setting in settings {
        let name = setting.name.as_deref().unwrap_or_default();
        let value = setting.value.as_deref().unwrap_or_default();
        if name != "containerInsights" {
            return Err(invalid("Setting name should be one of [containerInsights]"));
        }
        if !matches!(value, "enabled" | "disabled" | "enhanced") {
            return Err(invalid("containerInsights should be one of [enabled,disabled,enhanced]"));
        }
        checked.insert(name.to_owned(), value.to_owned());
    }
    Ok(checked)
}

/// The request's `configuration`, to be kept as it was written.
pub(super) fn checked_configuration(configuration: &ClusterConfiguration) -> Result<Value, Error> {
    if let Some(exec) = &configuration.execute_command_configuration {
        let overrides = exec.logging.as_deref() == Some("OVERRIDE");
        match &exec.log_configuration {
            Some(_) if !overrides => {
                return Err(invalid(
                    "You must set logging to 'OVERRIDE' when you supply a log configuration.",
                ));
            }
            Some(logs) if logs.cloud_watch_log_group_name.is_some() || logs.s3_bucket_name.is_some() => {}
            _ if overrides => {
                return Err(invalid(
                    "A CloudWatch log group name or S3 bucket name must be specified when overriding the default \
                     log configuration.",
                ));
            }
            _ => {}
        }
    }
    serde_json::to_value(configuration).map_err(|e| corrupt("cluster configuration", &e))
}

/// The request's `serviceConnectDefaults`; an empty namespace removes them.
pub(super) fn checked_service_connect(
    defaults: &ClusterServiceConnectDefaultsRequest,
) -> Result<Option<Value>, Error> {
    let namespace = defaults.namespace.as_str();
    if namespace.is_empty() {
        return Ok(None);
    }
    if namespace.chars().count() > 1024 || namespace.chars().any(char::is_control) {
        return Err(invalid("The namespace of serviceConnectDefaults is invalid."));
    }
    Ok(Some(serde_json::json!({ "namespace": namespace })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_container_insights_is_a_setting() {
        let setting = |name: &str, value: &str| ClusterSetting {
            name: Some(name.to_owned()),
            value: Some(value.to_owned()),
        };
        assert!(checked(&[setting("containerInsights", "enhanced")]).is_ok());
        assert!(checked(&[setting("containerInsights", "on")]).is_err());
        assert!(checked(&[setting("other", "enabled")]).is_err());
    }

    #[test]
    fn exec_logging_needs_a_target_when_overridden() {
        let parse = |text: &str| serde_json::from_str::<ClusterConfiguration>(text).unwrap();
        for (text, ok) in [
            ("{}", true),
            (r#"{"executeCommandConfiguration":{"logging":"NONE"}}"#, true),
            (r#"{"executeCommandConfiguration":{"logging":"OVERRIDE"}}"#, false),
            (r#"{"executeCommandConfiguration":{"logging":"OVERRIDE","logConfiguration":{}}}"#, false),
            (
                r#"{"executeCommandConfiguration":{"logging":"DEFAULT",
                    "logConfiguration":{"s3BucketName":"b"}}}"#,
                false,
            ),
            (
                r#"{"executeCommandConfiguration":{"logging":"OVERRIDE",
                    "logConfiguration":{"s3BucketName":"b"}}}"#,
                true,
            ),
        ] {
            assert_eq!(checked_configuration(&parse(text)).is_ok(), ok, "{text}");
        }
    }
}
