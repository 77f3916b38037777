use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// A directory that is removed when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("coracle-push-test-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A tar file's bytes, with names that the tar crate would refuse to write.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pushed(bytes: &[u8], wanted: Option<&str>) -> anyhow::Result<Image> {
    let dir = Dir::new();
    let file = dir.0.join("image.tar");
    std::fs::write(&file, bytes).unwrap();
    let wanted = wanted.map(|name| ImageName::parse(name, "localhost:4566").unwrap());
    read(&Archive::open(&file)?, wanted.as_ref())
}

fn complaint(bytes: &[u8]) -> String {
    format!("{:#}", pushed(bytes, None).unwrap_err())
}

fn digest(bytes: &[u8]) -> String {
    sha256(bytes).unwrap()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// What `docker save` writes, with this layer (as it is in the file) and that diff_id.
fn saved(layer: &[u8], diff_id: &str, layer_name: &str) -> Vec<u8> {
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["docker.io/library/web:1"], "Layers": [layer_name]}]);
    tar_of(&[
        ("./c.json", config.to_string().as_bytes()),
        ("l/layer.tar", layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

/// The files of a layout with one image.
fn layout(layer: &[u8]) -> Vec<(String, Vec<u8>)> {
    let config = br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let (c, l) = (digest(&config), digest(layer));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": c, "size": config.len()},
        "layers": [
            {"mediaType": OCI_LAYER, "digest": l, "size": layer.len()},
            {"mediaType": OCI_LAYER, "digest": l, "size": layer.len()},
        ],
    });
    let manifest = manifest.to_string().into_bytes();
    let m = digest(&manifest);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": m, "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "quay.io/team/web:2"},
    }]});
    vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        (blob_path(&c), config),
        (blob_path(&l), layer.to_vec()),
        (blob_path(&m), manifest),
    ]
}

fn tar_of_layout(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    tar_of(&files)
}

#[test]
fn a_docker_archive_becomes_an_image_whose_diff_ids_hold() {
    let layer = tar_of(&[("bin/true", b"x")]);
    for bytes in
        [saved(&layer, &digest(&layer), "l/layer.tar"), gzip(&saved(&layer, &digest(&layer), "l/layer.tar"))]
    {
        let image = pushed(&bytes, None).unwrap();
        assert_eq!(image.name.as_deref(), Some("docker.io/library/web:1"));
        let manifest: ImageManifest = serde_json::from_slice(&image.manifests[0].bytes).unwrap();
        assert_eq!(manifest.layers[0].digest, digest(&layer));
        assert_eq!(manifest.layers[0].media_type, OCI_LAYER);
        assert_eq!(image.blobs.len(), 2);
        for blob in &image.blobs {
            assert_eq!(sha256(blob.content.reader()).unwrap(), blob.digest);
        }
    }
    let packed = gzip(&layer);
    let image = pushed(&saved(&packed, &digest(&layer), "l/layer.tar"), None).unwrap();
    assert_eq!(image.blobs[0].digest, digest(&packed));
}

#[test]
fn a_layout_is_taken_as_it_is() {
    let files = layout(b"layer");
    let image = pushed(&tar_of_layout(&files), None).unwrap();
    assert_eq!(image.name.as_deref(), Some("quay.io/team/web:2"));
    assert_eq!(image.manifests.last().unwrap().bytes, files[4].1);
    // The layer that is there twice is sent once.
    assert_eq!(image.blobs.len(), 2);

    let dir = Dir::new();
    std::fs::create_dir_all(dir.0.join("blobs/sha256")).unwrap();
    for (name, bytes) in &files {
        std::fs::write(dir.0.join(name), bytes).unwrap();
    }
    let same = read(&Archive::open(&dir.0).unwrap(), None).unwrap();
    assert_eq!(same.manifests.last().unwrap().digest, image.manifests.last().unwrap().digest);
}

#[test]
fn an_index_is_cut_down_to_what_is_there() {
    let mut files = layout(b"layer");
    let inner: Value = serde_json::from_slice(&files[1].1).unwrap();
    let present = inner["manifests"][0].clone();
    let absent = json!({"mediaType": OCI_MANIFEST, "digest": digest(b"absent"), "size": 6});
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [present, absent]}).to_string();
    let top = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI_INDEX, "digest": digest(index.as_bytes()), "size": index.len()},
    ]});
    files.push((blob_path(&digest(index.as_bytes())), index.clone().into_bytes()));
    files[1].1 = top.to_string().into_bytes();
    let image = pushed(&tar_of_layout(&files), None).unwrap();
    let last = image.manifests.last().unwrap();
    assert_eq!((image.manifests.len(), last.bytes.as_slice()), (1, files[4].1.as_slice()));
    files.push((blob_path(&digest(b"absent")), b"absent".to_vec()));
    assert!(complaint(&tar_of_layout(&files)).contains("not an image manifest"));
}

#[test]
fn hostile_and_damaged_archives_are_refused() {
    let layer = tar_of(&[("bin/true", b"x")]);
    let id = digest(&layer);
    let good = saved(&layer, &id, "l/layer.tar");
    assert!(complaint(&saved(&layer, &id, "../../etc/passwd")).contains("leads out of the archive"));
    assert!(complaint(&saved(&layer, &id, "/etc/passwd")).contains("leads out of the archive"));
    assert!(complaint(&saved(&layer, &id, "l/other.tar")).contains("l/other.tar is missing"));
    assert!(complaint(&saved(&layer, &digest(b"other"), "l/layer.tar")).contains("is damaged"));
    assert!(complaint(&tar_of(&[("../x", b"x")])).contains("leads out of the archive"));
    assert!(complaint(&tar_of(&[("x", b"x")])).contains("neither an index.json"));
    assert!(complaint(&tar_of(&[("manifest.json", b"{}")])).contains("not docker save's"));
    assert!(complaint(&tar_of(&[("manifest.json", b"[]")])).contains("no image"));
    assert!(complaint(b"no tar at all").contains("neither an OCI layout nor a docker-archive"));
    assert!(complaint(b"").contains("neither an OCI layout nor a docker-archive"));
    assert!(complaint(&good[..2000]).contains("docker-archive"));
    let packed = gzip(&good);
    assert!(complaint(&packed[..packed.len() / 2]).contains("cannot uncompress"));
    let huge = vec![b' '; usize::try_from(MAX_MANIFEST).unwrap() + 1];
    assert!(complaint(&tar_of(&[("manifest.json", &huge)])).contains("more than"));

    let mut files = layout(b"layer");
    let blob = files.remove(3);
    assert!(complaint(&tar_of_layout(&files)).contains("is missing"));
    files.push((blob.0, b"longer layer".to_vec()));
    assert!(complaint(&tar_of_layout(&files)).contains("12 bytes instead of 5"));
    let mut files = layout(b"layer");
    files[4].1[0] = b' ';
    assert!(complaint(&tar_of_layout(&files)).contains("is damaged"));
    let index = String::from_utf8(files[1].1.clone()).unwrap().replace("sha256:", "sha256:../");
    files[1].1 = index.into_bytes();
    assert!(complaint(&tar_of_layout(&files)).contains("not a SHA-256 digest"));
}

#[test]
fn of_several_images_one_is_named() {
    let layer = tar_of(&[("x", b"x")]);
    let config = json!({"rootfs": {"diff_ids": [digest(&layer)]}}).to_string();
    let one = |name: &str| json!({"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]});
    let manifest = json!([one("a1:1"), one("b2:2")]).to_string();
    let bytes =
        tar_of(&[("c.json", config.as_bytes()), ("l.tar", &layer), ("manifest.json", manifest.as_bytes())]);
    assert_eq!(pushed(&bytes, Some("b2:2")).unwrap().name.as_deref(), Some("b2:2"));
    assert!(complaint(&bytes).contains("it has 2 images (a1:1, b2:2)"));
    assert!(pushed(&bytes, Some("cc:3")).is_err());
}
