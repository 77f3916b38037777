//! The image in an archive: its manifests and blobs, with everything checked that can be checked
//! before sending.
//!
//! Formats: OCI image layout (image-layout.md of the OCI image specification) and docker-archive, the
//! `manifest.json` of `docker save`. A docker-archive has no manifest of its own; one is made here, over
//! the configuration as it is and the layers as they are, so that their diff_ids hold.

use std::io::Read;

use anyhow::{Context, bail};
use ring::digest::SHA256;
use serde::Deserialize;
use serde_json::{Value, json};

use super::archive::{Archive, Extent};
use super::name::ImageName;
use crate::commands::print::printable;

/// As the registry accepts them.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_CONFIG: u64 = 8 << 20;
/// Of one image, over all its platforms.
const MAX_MANIFESTS: usize = 200;
/// Indexes in indexes.
const MAX_DEPTH: usize = 4;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A layer or configuration.
#[derive(Debug)]
pub struct Blob {
    pub digest: String,
    pub content: Extent,
}

impl Blob {
    pub fn size(&self) -> u64 {
        self.content.len
    }
}

/// A manifest or index, byte for byte.
#[derive(Debug)]
pub struct Manifest {
    pub digest: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// What has to be sent.
#[derive(Debug, Default)]
pub struct Image {
    /// Those that an index refers to before it; the last is the image.
    pub manifests: Vec<Manifest>,
    pub blobs: Vec<Blob>,
    /// The first name that the archive gives it.
    pub name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Value>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    /// Content that is somewhere else and not in the archive.
    #[serde(default)]
    urls: Vec<String>,
}

impl Descriptor {
    fn name(&self) -> Option<&str> {
        // containerd (and docker save) writes the whole name, the specification only a reference.
        let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        names.iter().find_map(|key| self.annotations.get(*key)).map(String::as_str)
    }

    fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Value>,
}

#[derive(Deserialize)]
struct ImageManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An entry of docker-archive's manifest.json.
#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// The archive's image; of several, the one that is called as `wanted`.
pub fn read(archive: &Archive, wanted: Option<&ImageName>) -> anyhow::Result<Image> {
    if let Some(bytes) = archive.read("index.json", MAX_MANIFEST)? {
        return read_layout(archive, &bytes, wanted);
    }
    if let Some(bytes) = archive.read("manifest.json", MAX_MANIFEST)? {
        return read_saved(archive, &bytes, wanted);
    }
    bail!("it has neither an index.json (OCI layout) nor a manifest.json (docker-archive)")
}

fn read_layout(archive: &Archive, bytes: &[u8], wanted: Option<&ImageName>) -> anyhow::Result<Image> {
    let index: Index = serde_json::from_slice(bytes).context("its index.json is not an image index")?;
    let mut descriptors = Vec::new();
    for value in index.manifests {
        let descriptor: Descriptor = serde_json::from_value(value).context("its index.json is damaged")?;
        descriptors.push(descriptor);
    }
    let names = descriptors.iter().map(|d| d.name().into_iter().map(str::to_owned).collect()).collect();
    let chosen = choose(names, wanted)?;
    let descriptor = &descriptors[chosen];
    let mut image = Image::default();
    gather(archive, descriptor, &mut image, 0)?;
    // A reference alone (a tag, mostly) does not say what the image is called.
    image.name = descriptor.name().filter(|name| name.contains([':', '/'])).map(str::to_owned);
    deduplicate(&mut image);
    Ok(image)
}

/// The index of the only image, or of the one with that name.
fn choose(names: Vec<Vec<String>>, wanted: Option<&ImageName>) -> anyhow::Result<usize> {
    match names.len() {
        0 => bail!("it has no image"),
        1 => return Ok(0),
        _ => {}
    }
    let is_wanted = |name: &String, wanted: &ImageName| {
        // The reference in a layout may be a tag alone.
        *name == wanted.tag || ImageName::of_archive(name).is_ok_and(|name| name == *wanted)
    };
    let matching: Vec<usize> = match wanted {
        Some(wanted) => {
            let having = names
                .iter()
                .enumerate()
                .filter(|(_, names)| names.iter().any(|name| is_wanted(name, wanted)));
            having.map(|(index, _)| index).collect()
        }
        None => Vec::new(),
    };
    if let [only] = matching.as_slice() {
        return Ok(*only);
    }
    let shown: Vec<String> = names.iter().flatten().take(10).map(|name| printable(name)).collect();
    let shown = if shown.is_empty() { "without names".to_owned() } else { shown.join(", ") };
    bail!("it has {} images ({shown}); give the NAME:TAG of one of them", names.len())
}

/// Reads a manifest or index and all below it.
fn gather(archive: &Archive, descriptor: &Descriptor, image: &mut Image, depth: usize) -> anyhow::Result<()> {
    if depth > MAX_DEPTH || image.manifests.len() >= MAX_MANIFESTS {
        bail!("its indexes are nested too deeply or have too many manifests");
    }
    let digest = &descriptor.digest;
    let bytes = archive.read(&blob_name(digest)?, MAX_MANIFEST)?;
    let bytes = bytes.with_context(|| format!("the manifest {digest} is missing"))?;
    if bytes.len() as u64 != descriptor.size || sha256(bytes.as_slice())? != *digest {
        bail!("the manifest {digest} is damaged: its content is another");
    }
    if descriptor.is_index() {
        let index: Index =
            serde_json::from_slice(&bytes).with_context(|| format!("{digest} is not an image index"))?;
        return gather_index(archive, descriptor, bytes, index, image, depth);
    }
    if !matches!(descriptor.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST) {
        bail!("{digest} is of a kind that cannot be pushed: {}", printable(&descriptor.media_type));
    }
    let manifest: ImageManifest =
        serde_json::from_slice(&bytes).with_context(|| format!("{digest} is not an image manifest"))?;
    for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
        let content = match archive.find(&blob_name(&part.digest)?)? {
            Some(content) => content,
            // The registry allows them to be absent.
            None if !part.urls.is_empty() => continue,
            None => bail!("the blob {} is missing", part.digest),
        };
        if content.len != part.size {
            bail!("the blob {} has {} bytes instead of {}", part.digest, content.len, part.size);
        }
        image.blobs.push(Blob { digest: part.digest.clone(), content });
    }
    image.manifests.push(Manifest {
        digest: digest.clone(),
        media_type: descriptor.media_type.clone(),
        bytes,
    });
    Ok(())
}

/// An index whose images are only partly in the archive (`docker save` keeps the pulled platform
/// alone) is cut down to those that are.
fn gather_index(
    archive: &Archive,
    descriptor: &Descriptor,
    bytes: Vec<u8>,
    index: Index,
    image: &mut Image,
    depth: usize,
) -> anyhow::Result<()> {
    let all = index.manifests.len();
    let mut present = Vec::new();
    for value in index.manifests {
        let child: Descriptor = serde_json::from_value(value.clone())
            .with_context(|| format!("{} is damaged", descriptor.digest))?;
        if archive.find(&blob_name(&child.digest)?)?.is_some() {
            present.push((child, value));
        }
    }
    if present.len() == all {
        for (child, _) in &present {
            gather(archive, child, image, depth + 1)?;
        }
        let (digest, media_type) = (descriptor.digest.clone(), descriptor.media_type.clone());
        image.manifests.push(Manifest { digest, media_type, bytes });
        return Ok(());
    }
    present.retain(|(child, _)| !is_attestation(child));
    match present.as_slice() {
        [] => bail!("none of the {all} images of the index {} are in the file", descriptor.digest),
        [(only, _)] => gather(archive, only, image, depth + 1),
        several => {
            for (child, _) in several {
                gather(archive, child, image, depth + 1)?;
            }
            let manifests: Vec<&Value> = several.iter().map(|(_, value)| value).collect();
            let index =
                json!({"schemaVersion": 2, "mediaType": descriptor.media_type, "manifests": manifests});
            let bytes = serde_json::to_vec(&index)?;
            let digest = sha256(bytes.as_slice())?;
            image.manifests.push(Manifest { digest, media_type: descriptor.media_type.clone(), bytes });
            Ok(())
        }
    }
}

/// BuildKit's provenance, which belongs to another manifest.
fn is_attestation(descriptor: &Descriptor) -> bool {
    let architecture = descriptor.platform.as_ref().and_then(|platform| platform.get("architecture"));
    architecture.and_then(Value::as_str) == Some("unknown")
}

fn read_saved(archive: &Archive, bytes: &[u8], wanted: Option<&ImageName>) -> anyhow::Result<Image> {
    let saved: Vec<Saved> =
        serde_json::from_slice(bytes).context("its manifest.json is not docker save's")?;
    let names = saved.iter().map(|image| image.names.clone().unwrap_or_default()).collect();
    let saved = &saved[choose(names, wanted)?];
    let missing = |name: &str| format!("{} is missing", printable(name));
    let config_bytes = archive.read(&saved.config, MAX_CONFIG)?.with_context(|| missing(&saved.config))?;
    let config = archive.find(&saved.config)?.with_context(|| missing(&saved.config))?;
    let diff_ids =
        diff_ids(&config_bytes).with_context(|| format!("{} is damaged", printable(&saved.config)))?;
    if diff_ids.len() != saved.layers.len() {
        bail!("its configuration names {} layers, its manifest.json {}", diff_ids.len(), saved.layers.len());
    }
    let mut image = Image { name: saved.names.iter().flatten().next().cloned(), ..Image::default() };
    let config_digest = sha256(config_bytes.as_slice())?;
    let mut layers = Vec::new();
    for (name, diff_id) in saved.layers.iter().zip(&diff_ids) {
        let content = archive.find(name)?.with_context(|| missing(name))?;
        let (digest, media_type) =
            layer(&content, diff_id).with_context(|| format!("the layer {}", printable(name)))?;
        layers.push(json!({"mediaType": media_type, "digest": digest, "size": content.len}));
        image.blobs.push(Blob { digest, content });
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len},
        "layers": layers,
    });
    image.blobs.push(Blob { digest: config_digest, content: config });
    let bytes = serde_json::to_vec(&manifest)?;
    let digest = sha256(bytes.as_slice())?;
    image.manifests.push(Manifest { digest, media_type: OCI_MANIFEST.to_owned(), bytes });
    deduplicate(&mut image);
    Ok(image)
}

fn diff_ids(config: &[u8]) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<String>,
    }
    let config: Config = serde_json::from_slice(config).context("it is not an image configuration")?;
    Ok(config.rootfs.diff_ids)
}

/// Digest and media type of a layer, whose uncompressed digest must be `diff_id`.
fn layer(content: &Extent, diff_id: &str) -> anyhow::Result<(String, String)> {
    let digest = sha256(content.reader())?;
    let mut magic = [0; 2];
    let read = content.read_at(&mut magic, 0).context("cannot be read")?;
    let (found, media_type) = if magic[..read] == [0x1f, 0x8b] {
        let plain = flate2::read::MultiGzDecoder::new(std::io::BufReader::new(content.reader()));
        (sha256(plain).context("cannot be uncompressed")?, format!("{OCI_LAYER}+gzip"))
    } else {
        (digest.clone(), OCI_LAYER.to_owned())
    };
    if found != diff_id {
        bail!("is damaged: its content is not {}", printable(diff_id));
    }
    Ok((digest, media_type))
}

/// Images share layers, and one may have the same layer twice.
fn deduplicate(image: &mut Image) {
    let mut seen = std::collections::HashSet::new();
    image.blobs.retain(|blob| seen.insert(blob.digest.clone()));
}

/// Where a layout keeps a blob. Only SHA-256 is in use.
fn blob_name(digest: &str) -> anyhow::Result<String> {
    let hex = digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    let hex = hex.with_context(|| format!("'{}' is not a SHA-256 digest", printable(digest)))?;
    Ok(format!("blobs/sha256/{hex}"))
}

/// `sha256:` and the hash of all that can be read.
pub fn sha256(mut content: impl Read) -> anyhow::Result<String> {
    let mut context = ring::digest::Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = content.read(&mut buffer).context("cannot read")?;
        if read == 0 {
            return Ok(format!("sha256:{}", hex::encode(context.finish())));
        }
        context.update(&buffer[..read]);
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
