//! Manifests and indexes: OCI image-spec (manifest.md, image-index.md) and Docker's schema 2, told apart and checked.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{PullErrorKind, printable};

/// The longest manifest that is read, in bytes (the OCI distribution spec asks registries to take at least this much).
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;
/// The longest config that is read, in bytes.
pub(crate) const CONFIG_MAX: u64 = 4 << 20;
/// The most layers an image may have: what overlayfs can stack (`OVL_MAX_STACK`).
pub(crate) const LAYERS_MAX: usize = 500;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The `Accept` header for manifests.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// An operating system and architecture that an image is for, in Go's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Platform {
    #[serde(rename = "linux/amd64")]
    LinuxAmd64,
    #[serde(rename = "linux/arm64")]
    LinuxArm64,
}

impl Platform {
    /// The platform of this host.
    pub fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::LinuxArm64 } else { Self::LinuxAmd64 }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::LinuxAmd64 => "amd64",
            Self::LinuxArm64 => "arm64",
        }
    }

    /// Whether a config for this operating system and architecture runs here; an empty field is taken as a match, since
    /// old builders left them out.
    pub(crate) fn runs(self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == "linux") && (architecture.is_empty() || architecture == self.architecture())
    }

    /// Rank of a variant, least demanding first; `None` for one that is not considered. Every amd64 host runs v1, and every
    /// arm64 host v8; a more demanding one is taken only where there is no other.
    fn rank(self, variant: &str) -> Option<u8> {
        match (self, variant) {
            (_, "") | (Self::LinuxAmd64, "v1") | (Self::LinuxArm64, "v8") => Some(0),
            (Self::LinuxAmd64, "v2") => Some(1),
            (Self::LinuxAmd64, "v3") => Some(2),
            (Self::LinuxArm64, text) if text.starts_with("v8.") => Some(1),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture())
    }
}

/// A layer as a manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerDescriptor {
    /// Of the compressed bytes.
    pub(crate) digest: Digest,
    /// Compressed size in bytes.
    pub(crate) size: u64,
}

/// A checked manifest of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config_digest: Digest,
    pub(crate) config_size: u64,
    /// Lowest first.
    pub(crate) layers: Vec<LayerDescriptor>,
}

/// What a registry may answer for a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Index),
}

/// A checked index (manifest list).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    manifests: Vec<(Option<PlatformDocument>, Digest)>,
}

impl Index {
    /// The entry for `platform`: the least demanding variant, the first of equals (image-index.md: order is preference).
    pub(crate) fn select(&self, platform: Platform) -> Result<Digest, PullErrorKind> {
        self.manifests
            .iter()
            .filter_map(|(entry, digest)| {
                let entry = entry.as_ref()?;
                if entry.os != "linux" || entry.architecture != platform.architecture() {
                    return None;
                }
                Some((platform.rank(&entry.variant)?, *digest))
            })
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, digest)| digest)
            .ok_or_else(|| PullErrorKind::NoMatchingPlatform(platform.to_string()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct PlatformDocument {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<i64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    platform: Option<PlatformDocument>,
    urls: Option<Vec<String>>,
}

impl RawDescriptor {
    fn digest(&self) -> Result<Digest, PullErrorKind> {
        self.digest.parse().map_err(|e| match e {
            super::digest::DigestError::Algorithm => PullErrorKind::Unsupported(format!(
                "unsupported digest {} (only sha256 is)",
                printable(&self.digest)
            )),
            super::digest::DigestError::Format => {
                PullErrorKind::Malformed(format!("invalid digest {} in manifest", printable(&self.digest)))
            }
        })
    }

    fn size(&self) -> Result<u64, PullErrorKind> {
        u64::try_from(self.size).map_err(|_| {
            PullErrorKind::Malformed(format!("negative size of {} in manifest", printable(&self.digest)))
        })
    }
}

/// Reads and checks a manifest or an index.
///
/// `content_type` is the registry's header. Where it and the document's own media type both name a kind they must agree,
/// and a document that could be read as either kind is refused (CVE-2021-41190).
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, PullErrorKind> {
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|e| {
        PullErrorKind::Malformed(format!("manifest is not valid: {}", printable(&e.to_string())))
    })?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(PullErrorKind::Unsupported(
            "media type application/vnd.docker.distribution.manifest.v1+prettyjws is no longer supported; \
             push the image again with a current client"
                .to_owned(),
        ));
    }
    let content_type = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
    let from_header = content_type.and_then(is_index);
    let from_body = raw.media_type.as_deref().and_then(is_index);
    if let (None, Some(other)) = (from_body, raw.media_type.as_deref().filter(|t| !t.is_empty())) {
        return Err(PullErrorKind::Unsupported(format!(
            "unsupported manifest media type {}",
            printable(other)
        )));
    }
    if let (Some(header), Some(body)) = (from_header, from_body)
        && header != body
    {
        return Err(PullErrorKind::Malformed(
            "manifest's media type differs from its Content-Type".to_owned(),
        ));
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if from_body.or(from_header) != Some(false) => index(manifests),
        (None, Some(config), layers) if from_body.or(from_header) != Some(true) => {
            image(&config, layers.unwrap_or_default())
        }
        _ => Err(PullErrorKind::Malformed("document is neither an image manifest nor an index".to_owned())),
    }
}

/// Whether a media type is an index's (`true`) or an image manifest's (`false`).
fn is_index(media_type: &str) -> Option<bool> {
    match media_type {
        OCI_INDEX | DOCKER_LIST => Some(true),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
        _ => None,
    }
}

fn index(manifests: Vec<RawDescriptor>) -> Result<Document, PullErrorKind> {
    let mut entries = Vec::with_capacity(manifests.len());
    for entry in manifests {
        // An entry of another kind (an attestation, a later format) is no reason to refuse the others.
        if entry.media_type == OCI_MANIFEST
            || entry.media_type == DOCKER_MANIFEST
            || is_index(&entry.media_type).is_some()
        {
            let digest = entry.digest()?;
            entries.push((entry.platform, digest));
        }
    }
    Ok(Document::Index(Index { manifests: entries }))
}

fn image(config: &RawDescriptor, layers: Vec<RawDescriptor>) -> Result<Document, PullErrorKind> {
    if config.media_type != OCI_CONFIG && config.media_type != DOCKER_CONFIG {
        return Err(PullErrorKind::Unsupported(format!(
            "not a container image: config media type {}",
            printable(&config.media_type)
        )));
    }
    let config_size = config.size()?;
    if config_size > CONFIG_MAX {
        return Err(PullErrorKind::TooLarge {
            what: "image config".to_owned(),
            limit: format!("{CONFIG_MAX} bytes"),
        });
    }
    if layers.len() > LAYERS_MAX {
        return Err(PullErrorKind::TooLarge {
            what: format!("number of layers ({})", layers.len()),
            limit: LAYERS_MAX.to_string(),
        });
    }
    let layers = layers.iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Document::Image(Manifest { config_digest: config.digest()?, config_size, layers }))
}

fn layer(descriptor: &RawDescriptor) -> Result<LayerDescriptor, PullErrorKind> {
    let media_type = descriptor.media_type.as_str();
    if media_type.contains("foreign") || media_type.contains("nondistributable") || descriptor.urls.is_some()
    {
        return Err(PullErrorKind::Unsupported(format!(
            "layer {} is foreign (non-distributable), which is not supported",
            printable(&descriptor.digest)
        )));
    }
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {}
        other => {
            return Err(PullErrorKind::Unsupported(format!(
                "unsupported layer media type {}",
                printable(other)
            )));
        }
    }
    Ok(LayerDescriptor { digest: descriptor.digest()?, size: descriptor.size()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, extra: &str) -> String {
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{}","size":1{extra}}}"#,
            Digest::of(media_type.as_bytes())
        )
    }

    fn manifest(layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG, ""),
            descriptor(layer_type, "")
        )
    }

    #[test]
    fn takes_every_layer_compression_and_refuses_foreign_ones() {
        for good in [
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            assert!(matches!(parse(manifest(good).as_bytes(), None), Ok(Document::Image(_))), "{good}");
        }
        for bad in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.wasm.content.layer.v1+wasm",
        ] {
            assert!(
                matches!(parse(manifest(bad).as_bytes(), None), Err(PullErrorKind::Unsupported(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn refuses_ambiguous_old_and_oversized_documents() {
        let good = manifest("application/vnd.oci.image.layer.v1.tar");
        assert!(parse(good.as_bytes(), Some(&format!("{OCI_MANIFEST}; charset=utf-8"))).is_ok());
        assert!(matches!(parse(good.as_bytes(), Some(OCI_INDEX)), Err(PullErrorKind::Malformed(_))));
        let both = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}}"#,
            descriptor(OCI_CONFIG, "")
        );
        assert!(matches!(parse(both.as_bytes(), None), Err(PullErrorKind::Malformed(_))));
        let old = r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
        assert!(matches!(parse(old.as_bytes(), None), Err(PullErrorKind::Unsupported(_))));
        let artifact = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#,
            descriptor("application/vnd.oci.empty.v1+json", "")
        );
        assert!(matches!(parse(artifact.as_bytes(), None), Err(PullErrorKind::Unsupported(_))));
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", "");
        let many = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG, ""),
            vec![layer; LAYERS_MAX + 1].join(",")
        );
        assert!(matches!(parse(many.as_bytes(), None), Err(PullErrorKind::TooLarge { .. })));
        assert!(matches!(parse(b"[]", None), Err(PullErrorKind::Malformed(_))));
    }

    #[test]
    fn selects_the_least_demanding_variant() {
        let entry = |seed: &str, os: &str, arch: &str, variant: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1,"platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}}}"#,
                Digest::of(seed.as_bytes())
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{},{},{},{},{}]}}"#,
            entry("unknown", "unknown", "unknown", ""),
            entry("windows", "windows", "amd64", ""),
            entry("v3", "linux", "amd64", "v3"),
            entry("v1", "linux", "amd64", "v1"),
            entry("arm", "linux", "arm", "v7"),
        );
        let Ok(Document::Index(index)) = parse(text.as_bytes(), None) else { panic!("no index") };
        assert_eq!(index.select(Platform::LinuxAmd64), Ok(Digest::of(b"v1")));
        assert_eq!(
            index.select(Platform::LinuxArm64),
            Err(PullErrorKind::NoMatchingPlatform("linux/arm64".to_owned()))
        );
    }
}
