//! `kill -9` in the middle of pulls, in a child process: the next open is clean, and goes on from what was finished.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::builder::{Compression, Tar, TestImage, noise};
use crate::support::faulty::Faulty;
use crate::support::mounts::Overlay;
use crate::support::{names, open, options, pull, scratch, until};

const ROOT: &str = "IMAGE_TEST_KILL_ROOT";
const REFERENCE: &str = "IMAGE_TEST_KILL_REFERENCE";

/// Not a test of its own: what the killed process does.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(root), Ok(reference)) = (std::env::var(ROOT), std::env::var(REFERENCE)) else { return };
    let store = open(root.as_ref(), options());
    let image = pull(&store, &reference).await.unwrap();
    store.lease(&image, "task").unwrap();
    std::fs::write(std::path::Path::new(&root).join("done"), "").unwrap();
    std::future::pending::<()>().await;
}

fn spawn(root: &std::path::Path, reference: &str) -> KilledOnDrop {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture"])
        .env(ROOT, root)
        .env(REFERENCE, reference)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    KilledOnDrop(child)
}

struct KilledOnDrop(std::process::Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_layers_survive_and_unfinished_ones_are_never_seen() {
    let registry = Faulty::start().await;
    let root = scratch();
    let small: Vec<_> =
        (0..3).map(|n| Tar::new().file("x", noise(10_000, n)).layer(Compression::Gzip)).collect();
    let large = Tar::new().file("large", noise(4 << 20, 9)).layer(Compression::Gzip);
    let image = TestImage::new(&[small[0].clone(), small[1].clone(), large.clone(), small[2].clone()]);
    let reference = registry.add("app", "1", &image);
    // The large layer stops in its middle, again and again.
    registry.behaviour().cut_after.store(1 << 20, Ordering::SeqCst);
    registry.behaviour().cuts.store(u32::MAX, Ordering::SeqCst);
    registry.behaviour().ignore_range.store(true, Ordering::SeqCst);
    let child = spawn(root.path(), &reference);
    until("the small layers are there", || {
        root.path().join("store/layers").is_dir() && names(root.path(), "layers").len() == 3
    })
    .await;
    until("the large one is on its way", || registry.count("GET", &large.digest().to_string()) > 0).await;
    drop(child);
    assert!(!names(root.path(), "tmp").is_empty(), "it was killed in its middle");

    registry.behaviour().cuts.store(0, Ordering::SeqCst);
    registry.clear_log();
    let store = open(root.path(), options());
    assert!(names(root.path(), "tmp").is_empty());
    assert!(store.list().is_empty());
    let pulled = pull(&store, &reference).await.unwrap();
    assert_eq!(registry.count("GET", &large.digest().to_string()), 1);
    for layer in &small {
        assert_eq!(
            registry.count("GET", &layer.digest().to_string()),
            0,
            "finished layers are not asked for again"
        );
    }
    let merged = Overlay::mount(&pulled);
    assert_eq!(std::fs::read(merged.path("large")).unwrap(), noise(4 << 20, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_answered_is_there_after_a_kill() {
    let mut registry = Faulty::start().await;
    let root = scratch();
    let layers: Vec<_> = (0..4)
        .map(|n| Tar::new().file(&format!("f{n}"), noise(500_000, n)).layer(Compression::Zstd))
        .collect();
    let reference = registry.add("app", "1", &TestImage::new(&layers));
    let child = spawn(root.path(), &reference);
    until("it is pulled and leased", || root.path().join("done").exists()).await;
    drop(child);
    registry = Faulty::start().await;
    let store = open(root.path(), options());
    let image = pull(&store, &reference).await.expect("the registry is away, the image is here");
    assert_eq!(store.lease_owners(), ["task"]);
    assert_eq!(Overlay::mount(&image).list(""), ["f0", "f1", "f2", "f3"]);
    drop(registry);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_the_store_opens_and_pulls() {
    let registry = Faulty::start().await;
    let root = scratch();
    let layers: Vec<_> = (0..6)
        .map(|n| Tar::new().file(&format!("f{n}"), noise(300_000, n)).layer(Compression::Gzip))
        .collect();
    let image = TestImage::new(&layers);
    let reference = registry.add("app", "1", &image);
    for round in 0..12 {
        let child = spawn(root.path(), &reference);
        // From before its open to after its pull.
        tokio::time::sleep(Duration::from_millis(5 + round * 9)).await;
        drop(child);
        let store = open(root.path(), options());
        assert!(names(root.path(), "tmp").is_empty());
        let image = pull(&store, &reference).await.unwrap();
        assert_eq!(image.diff_ids, layers.iter().map(|l| l.diff_id).collect::<Vec<_>>());
        for (place, layer) in image.layers.iter().enumerate() {
            let data = std::fs::read(layer.join(format!("f{place}"))).unwrap();
            assert!(data == noise(300_000, place as u64), "round {round}, layer {place}");
        }
        drop(image);
        store.release("task").unwrap();
        // Every second round begins with nothing, the others with some layers.
        if round % 2 == 0 {
            store.remove("", &reference).await.unwrap();
        }
    }
}
