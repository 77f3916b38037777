//! The image configuration: what an image says about how to run it (OCI image-spec, config.md; the health check is
//! Docker's addition to it).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// What an image says about how to run it. Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; names are resolved in the image.
    pub user: String,
    pub working_dir: String,
    /// As written, such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// `port/protocol`, or `port` alone, which means TCP.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub healthcheck: Option<Healthcheck>,
}

/// An image's own health check. Note that ECS ignores it: only the task definition's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    pub test: Vec<String>,
    /// Nanoseconds; 0 means the default.
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub retries: i64,
}

impl ImageConfig {
    /// The part that a sandbox needs.
    pub fn to_model(&self) -> model::sandbox::ImageConfig {
        model::sandbox::ImageConfig {
            entrypoint: self.entrypoint.clone(),
            cmd: self.cmd.clone(),
            env: self.env.clone(),
            user: self.user.clone(),
            working_dir: self.working_dir.clone(),
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            volumes: self.volumes.clone(),
        }
    }
}

/// A config blob as registries hold it.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    config: Option<RunConfig>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
    healthcheck: Option<HealthcheckDocument>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HealthcheckDocument {
    #[serde(deserialize_with = "null_is_default")]
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    retries: i64,
}

/// Go writes an empty slice or map as `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ConfigDocument {
    /// Splits the document into the layers' diff ids, lowest first, and the run configuration.
    pub(crate) fn into_parts(self) -> (Vec<Digest>, ImageConfig) {
        let run = self.config.unwrap_or_default();
        let config = ImageConfig {
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            user: run.user,
            working_dir: run.working_dir,
            stop_signal: run.stop_signal.filter(|s| !s.is_empty()),
            exposed_ports: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
            labels: run.labels,
            healthcheck: run.healthcheck.map(|h| Healthcheck {
                test: h.test,
                interval: h.interval,
                timeout: h.timeout,
                start_period: h.start_period,
                retries: h.retries,
            }),
        };
        (self.rootfs.diff_ids, config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_writes() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/e"],"Cmd":null,"Env":["A=b"],
            "User":"1:2","WorkingDir":"/w","StopSignal":"SIGINT","ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},
            "Labels":null,"Healthcheck":{"Test":["CMD","true"],"Interval":1000000000}},
            "rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#;
        let document: ConfigDocument = serde_json::from_str(text).unwrap();
        let (diff_ids, config) = document.into_parts();
        assert!(diff_ids.is_empty());
        assert_eq!(config.entrypoint, ["/e"]);
        assert!(config.cmd.is_empty() && config.labels.is_empty());
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.volumes, ["/v"]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.healthcheck.unwrap().interval, 1_000_000_000);
        let bare: ConfigDocument = serde_json::from_str("{}").unwrap();
        assert_eq!(bare.into_parts().1, ImageConfig::default());
    }
}
