//! Manifests: the four kinds that are stored, and what each refers to.
//!
//! A manifest's bytes are kept exactly as pushed; this module only reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::RegistryError;
use super::name::Digest;

/// Docker image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The longest manifest (bytes): ECR's `ImageManifest` and the OCI distribution spec's advice.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// The most descriptors in one manifest. Docker stops at 127 layers; a list of all platforms and
/// their attestations has a few dozen entries. Each is a guard and a write of one transaction
/// (`store::MAX_TXN_OPERATIONS`), as are the tags that are deleted with an image.
const MAX_REFERENCES: usize = 800;

/// A reference from a manifest to other content (OCI image spec, "Descriptor").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The longest media or artifact type (RFC 6838 §4.2: two names of at most 127 characters).
const MAX_MEDIA_TYPE: usize = 255;

/// What the registry needs to know of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// One of the four media types above.
    pub media_type: &'static str,
    /// The image's config, if this is an image.
    pub config: Option<Descriptor>,
    /// The image's layers, base first.
    pub layers: Vec<Descriptor>,
    /// The manifests of a list or index.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is about; it need not exist.
    pub subject: Option<Descriptor>,
    /// The kind of artifact: `artifactType`, else the config's media type.
    pub artifact_type: Option<String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The blobs that have to be in the repository, each once: config and layers.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut blobs: Vec<Descriptor> = Vec::new();
        for blob in self.config.iter().chain(&self.layers) {
            if !blobs.iter().any(|seen| seen.digest == blob.digest) {
                blobs.push(blob.clone());
            }
        }
        blobs
    }
}

/// A manifest as JSON; only the fields that matter, and only of the right types.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
    // Of schema 1, and of schema 2 never.
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// A descriptor before its digest is checked, so that the error can say which one is wrong.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor, RegistryError> {
        Ok(Descriptor {
            digest: self.digest.parse().map_err(|error| {
                RegistryError::ManifestInvalid(format!(
                    "the manifest names content by '{}': {error}",
                    printable(&self.digest)
                ))
            })?,
            media_type: self.media_type.unwrap_or_default(),
            size: self.size,
        })
    }
}

/// Reads a manifest. `content_type` is what the client said it is (parameters after `;` are
/// ignored); without it the manifest's own `mediaType` counts, and failing that its shape.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, RegistryError> {
    let invalid = |reason: &str| RegistryError::ManifestInvalid(reason.to_owned());
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(RegistryError::ManifestTooLarge(MAX_MANIFEST_BYTES));
    }
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|error| RegistryError::ManifestInvalid(format!("the manifest is not valid: {error}")))?;
    if document.schema_version == Some(1) || document.fs_layers.is_some() {
        return Err(RegistryError::ManifestUnsupported(
            "application/vnd.docker.distribution.manifest.v1+json".to_owned(),
        ));
    }
    if document.schema_version != Some(2) {
        return Err(invalid("a manifest's schemaVersion is 2"));
    }
    let said = content_type
        .map(|value| value.split(';').next().unwrap_or(value).trim())
        .filter(|value| !value.is_empty());
    if let (Some(said), Some(own)) = (said, document.media_type.as_deref())
        && said != own
    {
        return Err(RegistryError::ManifestInvalid(format!(
            "the manifest's mediaType is '{}', the Content-Type is '{}'",
            printable(own),
            printable(said)
        )));
    }
    let media_type = match said.or(document.media_type.as_deref()) {
        Some(DOCKER_MANIFEST) => DOCKER_MANIFEST,
        Some(DOCKER_LIST) => DOCKER_LIST,
        Some(OCI_MANIFEST) => OCI_MANIFEST,
        Some(OCI_INDEX) => OCI_INDEX,
        Some(other) => return Err(RegistryError::ManifestUnsupported(printable(other))),
        // Only OCI's mediaType may be left out (image spec, "Image Manifest").
        None if document.manifests.is_some() => OCI_INDEX,
        None => OCI_MANIFEST,
    };
    let list = matches!(media_type, DOCKER_LIST | OCI_INDEX);
    // A document that reads as an image to one client and as a list to another would run different
    // things under one digest (CVE-2021-41190).
    if list && (document.config.is_some() || document.layers.is_some()) {
        return Err(invalid("a manifest list has neither config nor layers"));
    }
    if !list && document.manifests.is_some() {
        return Err(invalid("an image manifest has no list of manifests"));
    }
    let check_all = |descriptors: Option<Vec<RawDescriptor>>| {
        let descriptors = descriptors.unwrap_or_default();
        if descriptors.len() > MAX_REFERENCES {
            return Err(RegistryError::ManifestInvalid(format!(
                "a manifest refers to at most {MAX_REFERENCES} others"
            )));
        }
        descriptors.into_iter().map(RawDescriptor::check).collect()
    };
    if list && document.manifests.is_none() {
        return Err(invalid("a manifest list has a list of manifests"));
    }
    if !list && (document.config.is_none() || document.layers.is_none()) {
        return Err(invalid("an image manifest has a config and layers"));
    }
    let types =
        [&document.artifact_type, &document.config.as_ref().and_then(|config| config.media_type.clone())]
            .into_iter()
            .flatten()
            .any(|text| text.len() > MAX_MEDIA_TYPE);
    if types {
        return Err(invalid("a media type has at most 255 characters"));
    }
    let config = document.config.map(RawDescriptor::check).transpose()?;
    Ok(Manifest {
        media_type,
        layers: check_all(document.layers)?,
        manifests: check_all(document.manifests)?,
        subject: document.subject.map(RawDescriptor::check).transpose()?,
        artifact_type: document.artifact_type.filter(|t| !t.is_empty()).or_else(|| {
            config
                .as_ref()
                .map(|config| config.media_type.clone())
                .filter(|media_type| !media_type.is_empty())
        }),
        config,
        annotations: document.annotations.unwrap_or_default(),
    })
}

/// A client's text, short and without control characters, to quote in an error.
fn printable(text: &str) -> String {
    text.chars().take(120).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(content: &[u8]) -> serde_json::Value {
        json!({"mediaType": "application/x", "digest": Digest::of(content), "size": content.len()})
    }

    fn read(value: serde_json::Value, content_type: Option<&str>) -> Result<Manifest, RegistryError> {
        parse(&serde_json::to_vec(&value).unwrap(), content_type)
    }

    #[test]
    fn images_and_lists_are_told_apart() {
        let image = json!({"schemaVersion": 2, "config": descriptor(b"c"), "layers": [descriptor(b"l"), descriptor(b"l")]});
        let manifest = read(image.clone(), None).unwrap();
        assert_eq!(manifest.media_type, OCI_MANIFEST);
        assert_eq!(manifest.blobs().len(), 2);
        let docker = read(image, Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"));
        assert_eq!(docker.unwrap().media_type, DOCKER_MANIFEST);
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(b"m")]});
        assert_eq!(read(index, None).unwrap().media_type, OCI_INDEX);
    }

    #[test]
    fn ambiguous_and_malformed_manifests_are_refused() {
        let (c, l) = (descriptor(b"c"), descriptor(b"l"));
        for bad in [
            json!({"schemaVersion": 2, "config": c, "layers": [l], "manifests": []}),
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": c, "layers": [l]}),
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX}),
            json!({"schemaVersion": 2, "config": c}),
            json!({"schemaVersion": 3, "config": c, "layers": []}),
            json!({"config": c, "layers": []}),
            json!({"schemaVersion": 2, "config": c, "layers": [{"digest": "sha256:../..", "size": 1}]}),
            json!({"schemaVersion": 2, "config": c, "layers": [{"digest": Digest::of(b""), "size": -1}]}),
            json!({"schemaVersion": 2, "config": c, "layers": vec![l.clone(); MAX_REFERENCES + 1]}),
            json!([1]),
        ] {
            assert!(matches!(read(bad.clone(), None), Err(RegistryError::ManifestInvalid(_))), "{bad}");
        }
        let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(matches!(read(schema1, None), Err(RegistryError::ManifestUnsupported(_))));
        let image = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": c, "layers": []});
        assert!(matches!(read(image, Some(DOCKER_MANIFEST)), Err(RegistryError::ManifestInvalid(_))));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(parse(deep.as_bytes(), None), Err(RegistryError::ManifestInvalid(_))));
    }
}
