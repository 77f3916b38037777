//! Layers as EROFS images: made once, kept and counted with their layer, whole or absent after a kill.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::image::{ErofsError, ErofsLayer, ImageOptions, ImageStore};

use crate::support::builder::{Compression, Tar, TestImage, noise};
use crate::support::faulty::Faulty;
use crate::support::{assert_clean, names, open, options, pull, scratch, until};

const ROOT: &str = "IMAGE_TEST_EROFS_ROOT";
const REFERENCE: &str = "IMAGE_TEST_EROFS_REFERENCE";

/// The store's images of layers, with their lengths.
fn images(root: &Path) -> Vec<(String, u64)> {
    let layers = names(root, "layers").into_iter();
    let images = layers.filter_map(|name| {
        let file = root.join("store/layers").join(&name).join("layer.erofs");
        Some((name, fs::metadata(file).ok()?.len()))
    });
    images.collect()
}

fn assert_whole(layers: &[ErofsLayer]) {
    for layer in layers {
        let bytes = fs::read(&layer.path).unwrap();
        assert_eq!(bytes.len() as u64, layer.length);
        assert_eq!(layer.length % 4096, 0);
        assert_eq!(bytes[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes(), "EROFS's magic number");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_layer_is_made_once_however_many_ask() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let layer = |n| Tar::new().file(&format!("f{n}"), noise(3_000_000, n)).layer(Compression::Gzip);
    // The lowest one comes again, on top.
    let image = TestImage::new(&[layer(0), layer(1), layer(2), layer(0)]);
    let image = pull(&store, &registry.add("app", "1", &image)).await.unwrap();
    let before = store.disk_bytes();
    let asked = futures_util::future::join_all((0..16).map(|_| store.erofs(&image))).await;
    let first = asked[0].as_ref().unwrap();
    assert!(asked.iter().all(|layers| layers.as_ref().unwrap() == first));
    assert_eq!(first.len(), 3);
    for (erofs, directory) in first.iter().zip(&image.layers) {
        assert_eq!(erofs.path.parent(), directory.parent(), "lowest first, beside the layers");
    }
    assert_whole(first);
    assert!(store.disk_bytes() > before + 9_000_000, "they are counted");
    assert_clean(root.path()).await;
    // Made once: the files are not made again when asked for again, nor after a restart.
    let inode = |layer: &ErofsLayer| std::os::unix::fs::MetadataExt::ino(&fs::metadata(&layer.path).unwrap());
    let inodes: Vec<u64> = first.iter().map(inode).collect();
    store.lease(&image, "task").unwrap();
    drop(image);
    drop(store);
    let store = open(root.path(), options());
    let image = store.leased("task").remove(0);
    let again = store.erofs(&image).await.unwrap();
    assert_eq!(&again, first);
    assert_eq!(again.iter().map(inode).collect::<Vec<_>>(), inodes);
    store.flush().await.unwrap();
    for name in names(root.path(), "layers") {
        let record =
            fs::read_to_string(root.path().join("store/layers").join(name).join("layer.json")).unwrap();
        assert_eq!(record.matches("\"synced\":true").count(), 2, "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_has_none() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let image = pull(&store, &registry.add("app", "1", &TestImage::new(&[]))).await.unwrap();
    assert!(store.erofs(&image).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn they_go_with_their_layers_and_count_in_the_budget() {
    let registry = Faulty::start().await;
    let root = scratch();
    let image = |n| TestImage::new(&[Tar::new().file("f", noise(4 << 20, n)).layer(Compression::None)]);
    // Two layers fit, or one with its image.
    let store = open(root.path(), ImageOptions { disk_budget_bytes: 9 << 20, ..options() });
    drop(pull(&store, &registry.add("a", "1", &image(1))).await.unwrap());
    let second = pull(&store, &registry.add("b", "1", &image(2))).await.unwrap();
    assert_eq!(names(root.path(), "layers").len(), 2);
    store.erofs(&second).await.unwrap();
    until("the other layer goes", || names(root.path(), "layers").len() == 1).await;
    assert_eq!(images(root.path()).len(), 1, "the one in use stays");
    let reference = second.reference.clone();
    drop(second);
    let collected = store.remove("", &reference).await.unwrap();
    assert!(collected.bytes > 8 << 20, "{collected:?}");
    assert!(names(root.path(), "layers").is_empty());
    assert_eq!(store.disk_bytes(), 0);
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_nothing_and_can_be_tried_again() {
    let registry = Faulty::start().await;
    let root = scratch();
    let image = TestImage::new(&[Tar::new().file("f", noise(100_000, 1)).layer(Compression::None)]);
    let reference = registry.add("a", "1", &image);
    let store = open(root.path(), options());
    drop(pull(&store, &reference).await.unwrap());
    drop(store);
    let store = open(root.path(), ImageOptions { min_free_bytes: u64::MAX, ..options() });
    let image = pull(&store, &reference).await.unwrap();
    let error = store.erofs(&image).await.unwrap_err();
    assert!(matches!(error, ErofsError::DiskFull), "{error}");
    assert_clean(root.path()).await;
    assert!(images(root.path()).is_empty());
    drop((image, store));
    let store = open(root.path(), options());
    let image = pull(&store, &reference).await.unwrap();
    assert_whole(&store.erofs(&image).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_record_does_not_vouch_for_is_made_again() {
    let registry = Faulty::start().await;
    let root = scratch();
    let image = TestImage::new(&[Tar::new().file("f", noise(100_000, 1)).layer(Compression::None)]);
    let reference = registry.add("a", "1", &image);
    let store = open(root.path(), options());
    let image = pull(&store, &reference).await.unwrap();
    let layer = store.erofs(&image).await.unwrap().remove(0);
    let good = fs::read(&layer.path).unwrap();
    let settle = async |store: ImageStore| {
        store.flush().await.unwrap();
        drop(store);
        // Its upkeep may still write; whoever opens waits for it.
        drop(open(root.path(), options()));
    };
    drop(image);
    settle(store).await;
    let record = layer.path.with_file_name("layer.json");
    let durable = fs::read_to_string(&record).unwrap();
    let damage: [(&str, &dyn Fn()); 4] = [
        ("cut short", &|| fs::write(&layer.path, &good[..4096]).unwrap()),
        ("gone", &|| fs::remove_file(&layer.path).unwrap()),
        ("not recorded", &|| {
            let mut document: serde_json::Value = serde_json::from_str(&durable).unwrap();
            document.as_object_mut().unwrap().remove("erofs");
            fs::write(&record, document.to_string()).unwrap();
            fs::write(&layer.path, "left by a kill").unwrap();
        }),
        ("of before a power loss", &|| {
            let mut document: serde_json::Value = serde_json::from_str(&durable).unwrap();
            document["erofs"]["synced"] = false.into();
            document["erofs"]["boot"] = "another".into();
            fs::write(&record, document.to_string()).unwrap();
            fs::write(&layer.path, vec![0; good.len()]).unwrap();
        }),
    ];
    for (what, damage) in damage {
        // Read-only, so it is replaced rather than written.
        let _ = fs::remove_file(&layer.path);
        fs::write(&layer.path, &good).unwrap();
        fs::write(&record, &durable).unwrap();
        damage();
        let store = open(root.path(), options());
        assert!(!layer.path.exists(), "{what}");
        let image = pull(&store, &reference).await.unwrap();
        assert_eq!(store.erofs(&image).await.unwrap(), std::slice::from_ref(&layer));
        assert!(fs::read(&layer.path).unwrap() == good, "{what}: the same bytes");
        drop(image);
        settle(store).await;
    }
}

/// Not a test of its own: what the killed process does.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(root), Ok(reference)) = (std::env::var(ROOT), std::env::var(REFERENCE)) else { return };
    let store = open(root.as_ref(), options());
    let image = pull(&store, &reference).await.unwrap();
    fs::write(Path::new(&root).join("pulled"), "").unwrap();
    store.erofs(&image).await.unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_an_image_is_whole_or_absent() {
    let registry = Faulty::start().await;
    let root = scratch();
    let layers: Vec<_> = (0..3)
        .map(|n| Tar::new().file(&format!("f{n}"), noise(6 << 20, n)).layer(Compression::None))
        .collect();
    let reference = registry.add("app", "1", &TestImage::new(&layers));
    for round in 0..10 {
        let _ = fs::remove_file(root.path().join("pulled"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "erofs::child", "--nocapture"])
            .env(ROOT, root.path())
            .env(REFERENCE, &reference)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("it is pulled", || root.path().join("pulled").exists()).await;
        // From before the first image to after the last.
        tokio::time::sleep(Duration::from_millis(round * 6)).await;
        let _ = child.kill();
        let _ = child.wait();
        let store = open(root.path(), options());
        assert!(names(root.path(), "tmp").is_empty());
        let image = pull(&store, &reference).await.unwrap();
        for layer in &image.layers {
            let erofs = layer.with_file_name("layer.erofs");
            assert!(fs::metadata(&erofs).map_or(true, |found| found.len() > 6 << 20), "round {round}");
        }
        let made = store.erofs(&image).await.unwrap();
        assert_whole(&made);
        drop(image);
        drop(store);
        for layer in &made {
            fs::remove_file(&layer.path).unwrap();
        }
    }
}
