//! Layers and images made in memory.

use std::io::Write;

use agent::image::Digest;
use serde_json::json;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A layer in both forms.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: &'static str,
}

impl Layer {
    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

/// An archive in the making.
#[derive(Default)]
pub struct Tar {
    builder: Option<tar::Builder<Vec<u8>>>,
}

/// An entry's metadata.
#[derive(Clone, Copy)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000 }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self { builder: Some(tar::Builder::new(Vec::new())) }
    }

    fn inner(&mut self) -> &mut tar::Builder<Vec<u8>> {
        self.builder.as_mut().unwrap()
    }

    /// An entry whose path and link are written as they are, whatever they say.
    pub fn raw(mut self, kind: u8, path: &[u8], link: &[u8], data: &[u8], meta: Meta) -> Self {
        let mut header = tar::Header::new_gnu();
        {
            let old = header.as_old_mut();
            assert!(path.len() <= 100 && link.len() <= 100, "too long for a raw entry");
            old.name[..path.len()].copy_from_slice(path);
            old.linkname[..link.len()].copy_from_slice(link);
        }
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_cksum();
        self.inner().append(&header, data).unwrap();
        self
    }

    /// Bytes as they are, such as a header made by hand.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.inner().get_mut().write_all(bytes).unwrap();
        self
    }

    /// PAX records for the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.inner().append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.file_as(path, data, Meta::default())
    }

    pub fn file_as(mut self, path: &str, data: impl AsRef<[u8]>, meta: Meta) -> Self {
        if path.len() <= 100 {
            return self.raw(b'0', path.as_bytes(), b"", data.as_ref(), meta);
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(data.as_ref().len() as u64);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        self.inner().append_data(&mut header, path, data.as_ref()).unwrap();
        self
    }

    pub fn dir(self, path: &str, meta: Meta) -> Self {
        self.raw(b'5', path.as_bytes(), b"", b"", meta)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), b"", Meta { mode: 0o777, ..Meta::default() })
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), b"", Meta::default())
    }

    pub fn archive(mut self) -> Vec<u8> {
        self.builder.take().unwrap().into_inner().unwrap()
    }

    pub fn layer(self, compression: Compression) -> Layer {
        layer_of(&self.archive(), compression)
    }
}

pub fn layer_of(archive: &[u8], compression: Compression) -> Layer {
    let (blob, media_type) = match compression {
        Compression::None => (archive.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
        Compression::Gzip => (gzip(archive), "application/vnd.oci.image.layer.v1.tar+gzip"),
        Compression::Zstd => {
            (zstd::stream::encode_all(archive, 3).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd")
        }
    };
    Layer { blob, diff_id: Digest::of(archive), media_type }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An image: blobs by digest, and a manifest.
#[derive(Clone)]
pub struct TestImage {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: &'static str,
}

impl TestImage {
    pub fn new(layers: &[Layer]) -> Self {
        Self::with(layers, &json!({"Entrypoint": ["/bin/app"], "Env": ["A=1"]}), "amd64", false)
    }

    pub fn with(layers: &[Layer], run: &serde_json::Value, architecture: &str, docker: bool) -> Self {
        let config = serde_json::to_vec(&json!({
            "os": "linux", "architecture": architecture, "config": run,
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>()},
        }))
        .unwrap();
        let (media_type, config_type) =
            if docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
        let docker_layer = |t: &str| {
            if t.ends_with("gzip") {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            } else {
                "application/vnd.docker.image.rootfs.diff.tar"
            }
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": Digest::of(&config).to_string(), "size": config.len()},
            "layers": layers.iter().map(|l| json!({
                "mediaType": if docker { docker_layer(l.media_type) } else { l.media_type },
                "digest": l.digest().to_string(), "size": l.blob.len(),
            })).collect::<Vec<_>>(),
        }))
        .unwrap();
        let mut blobs = vec![config];
        blobs.extend(layers.iter().map(|l| l.blob.clone()));
        Self { blobs, manifest, media_type }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The same image with its manifest's text changed.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        let text = String::from_utf8(self.manifest).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        self.manifest = text.replace(from, to).into_bytes();
        self
    }
}

/// An index over images, each with its platform's architecture and variant.
pub fn index(entries: &[(&TestImage, &str, &str)]) -> Vec<u8> {
    let manifests: Vec<_> = entries
        .iter()
        .map(|(image, architecture, variant)| {
            json!({"mediaType": image.media_type, "digest": image.digest().to_string(), "size": image.manifest.len(),
                   "platform": {"os": "linux", "architecture": architecture, "variant": variant}})
        })
        .collect();
    serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})).unwrap()
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
