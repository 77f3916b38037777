//! Leases, removal and collection, over restarts too.

use std::sync::Arc;
use std::time::Duration;

use agent::image::{Image, ImageOptions, ImageStore, PullRequest};

use crate::support::builder::{Compression, Layer, Tar, TestImage, noise};
use crate::support::faulty::Faulty;
use crate::support::{assert_clean, names, open, options, pull, scratch, until};

const MIB: usize = 1 << 20;

fn layer(seed: u64) -> Layer {
    Tar::new().file(&format!("data{seed}"), noise(MIB, seed)).layer(Compression::None)
}

/// Pulls images `names`, each of a shared layer and one of its own, in this order.
async fn fill(registry: &Faulty, store: &ImageStore, names: &[&str]) -> Vec<Arc<Image>> {
    let base = layer(1000);
    let mut images = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let reference = registry.add(name, "1", &TestImage::new(&[base.clone(), layer(index as u64)]));
        images.push(pull(store, &reference).await.unwrap());
        // Uses are told apart by the file system's clock.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    images
}

fn listed(store: &ImageStore) -> Vec<String> {
    let mut names: Vec<String> =
        store.list().iter().map(|i| i.reference.split(['/', ':']).rev().nth(1).unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_goes_first_and_what_is_leased_stays() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let images = fill(&registry, &store, &["a", "b", "c", "d"]).await;
    store.lease(&images[0], "task-1").unwrap();
    store.lease(&images[0], "task-2").unwrap();
    drop(images);
    // b is the oldest, but was used again.
    pull(&store, &format!("{}/b:1", registry.host)).await.unwrap();
    drop(store);

    // Over a restart: leases and uses are on disk. A budget for three layers and a bit.
    let budget = 3 * MIB as u64 + MIB as u64 / 2;
    let store = open(root.path(), ImageOptions { disk_budget_bytes: budget, ..options() });
    store.gc().await.unwrap();
    assert_eq!(listed(&store), ["a", "b"], "c and d are older than b, a is leased");
    assert!(store.disk_bytes() <= budget);
    assert_eq!(names(root.path(), "layers").len(), 3, "the shared layer stays");

    // With no budget at all only the lease counts, and two owners hold it.
    drop(store);
    let store = open(root.path(), ImageOptions { disk_budget_bytes: 0, ..options() });
    store.gc().await.unwrap();
    assert_eq!(listed(&store), ["a"]);
    let mut owners = store.lease_owners();
    owners.sort();
    assert_eq!(owners, ["task-1", "task-2"]);
    assert_eq!(store.leased("task-1")[0].reference, format!("{}/a:1", registry.host));
    store.release("task-1").unwrap();
    store.gc().await.unwrap();
    assert_eq!(listed(&store), ["a"]);
    store.release("task-2").unwrap();
    store.release("task-2").unwrap();
    store.gc().await.unwrap();
    assert!(listed(&store).is_empty() && names(root.path(), "layers").is_empty());
    assert!(names(root.path(), "manifests").is_empty() && names(root.path(), "leases").is_empty());
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_image_stays_and_a_new_pull_brings_the_store_back_within_budget() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store =
        open(root.path(), ImageOptions { disk_budget_bytes: 2 * MIB as u64 + MIB as u64 / 2, ..options() });
    let mut images = fill(&registry, &store, &["a", "b", "c"]).await;
    // Three layers over the budget, but all in use.
    store.gc().await.unwrap();
    assert_eq!(listed(&store), ["a", "b", "c"]);
    let path = images[0].layers[1].clone();
    // The next pull, or the end of a lease, finds the images that nobody uses any more.
    images.truncate(2);
    images.remove(0);
    store.lease(&images[0], "task").unwrap();
    images.clear();
    pull(&store, &format!("{}/c:1", registry.host)).await.unwrap();
    store.release("task").unwrap();
    until("old images are gone", || store.disk_bytes() <= 2 * MIB as u64 + MIB as u64 / 2).await;
    assert_eq!(listed(&store), ["c"]);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_takes_what_nothing_else_needs() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let images = fill(&registry, &store, &["a", "b", "c"]).await;
    let name = |n: &str| format!("{}/{n}:1", registry.host);
    store.lease(&images[1], "task").unwrap();
    drop(images);
    assert_eq!(store.remove("", &name("a")).await.unwrap().layers, 1);
    assert_eq!(store.remove("", &name("a")).await.unwrap().references, 0);
    assert_eq!(store.remove("other", &name("c")).await.unwrap().references, 0);
    assert_eq!(store.remove("", "Not a reference").await.unwrap().references, 0);
    // A leased image loses its name, not its layers, over a restart too.
    assert_eq!(store.remove("", &name("b")).await.unwrap().layers, 0);
    assert!(store.lookup("", &name("b")).is_none());
    drop(store);
    let store = open(root.path(), options());
    let leased = store.leased("task");
    assert!(leased[0].layers.iter().all(|layer| layer.is_dir()));
    // A live one can still be leased after its removal.
    let c = store.lookup("", &name("c")).unwrap();
    store.remove("", &name("c")).await.unwrap();
    store.lease(&c, "late").unwrap();
    drop(c);
    drop(store);
    let store = open(root.path(), ImageOptions { disk_budget_bytes: 0, ..options() });
    store.gc().await.unwrap();
    assert!(store.leased("late")[0].layers.iter().all(|layer| layer.is_dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_and_collections_at_the_same_time_agree() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), ImageOptions { disk_budget_bytes: MIB as u64, ..options() });
    let base = layer(1000);
    let references: Vec<String> = (0..6)
        .map(|n| {
            registry.add("app", &n.to_string(), &TestImage::new(&[base.clone(), layer(n), layer(n % 3 + 50)]))
        })
        .collect();
    let pullers: Vec<_> = (0..4)
        .map(|puller| {
            let (store, references) = (store.clone(), references.clone());
            tokio::spawn(async move {
                for round in 0..10 {
                    let reference = &references[(puller * 7 + round) % references.len()];
                    let image = pull(&store, reference).await.unwrap();
                    let owner = format!("{puller}-{round}");
                    store.lease(&image, &owner).unwrap();
                    let layers = image.layers.clone();
                    drop(image);
                    store.gc().await.unwrap();
                    for layer in layers {
                        assert_eq!(std::fs::read_dir(&layer).unwrap().count(), 1, "{}", layer.display());
                    }
                    store.release(&owner).unwrap();
                }
            })
        })
        .collect();
    for puller in pullers {
        puller.await.unwrap();
    }
    store.gc().await.unwrap();
    assert!(store.disk_bytes() <= MIB as u64);
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_loss_may_tear_is_not_trusted() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    fill(&registry, &store, &["a", "b"]).await;
    store.flush().await.unwrap();
    drop(store);
    let layers = root.path().join("store/layers");
    let record = |name: &str| layers.join(name).join("layer.json");
    let all = names(root.path(), "layers");
    let text = std::fs::read_to_string(record(&all[0])).unwrap();
    assert!(text.contains("\"synced\":true"), "{text}");

    // Written in another boot and not synced; a torn record; a layer without its files; a stranger's name.
    let other_boot =
        text.replace("\"synced\":true", "\"synced\":false").replace("\"boot\":\"", "\"boot\":\"x");
    std::fs::write(record(&all[0]), other_boot).unwrap();
    std::fs::write(record(&all[1]), "").unwrap();
    std::fs::create_dir(layers.join("stranger")).unwrap();
    std::fs::write(root.path().join("store/refs/torn.json"), "{").unwrap();
    std::fs::write(root.path().join("store/leases/torn.json"), "").unwrap();
    std::fs::create_dir_all(root.path().join("store/tmp/7/fs")).unwrap();
    let store = open(root.path(), options());
    assert_eq!(names(root.path(), "layers"), all[2..]);
    assert!(names(root.path(), "leases").is_empty() && names(root.path(), "tmp").is_empty());
    // What is gone is pulled again, what is there is not.
    registry.clear_log();
    for name in ["a", "b"] {
        pull(&store, &format!("{}/{name}:1", registry.host)).await.unwrap();
    }
    assert_eq!(names(root.path(), "layers"), all);
    let blobs = registry.count("GET", "/blobs/");
    assert!(blobs <= 2 + 2, "{blobs} blobs: two layers, and configs");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_a_store_and_it_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let root = scratch();
    let store = open(root.path(), options());
    let mode = std::fs::metadata(root.path().join("store")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "layers hold setuid files");
    let lock = std::fs::File::open(root.path().join("store/lock")).unwrap();
    assert!(matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    drop(store);
    until("the lock is free", || lock.try_lock().is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_image_is_not_downloaded_again() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    fill(&registry, &store, &["a"]).await;
    registry.clear_log();
    for scope in ["", "", "another"] {
        let request =
            PullRequest { scope: scope.into(), ..PullRequest::new(format!("{}/a:1", registry.host)) };
        store.pull(request, |_| {}).await.unwrap();
    }
    assert_eq!(registry.count("HEAD", "/manifests/"), 2);
    assert_eq!(registry.count("GET", "/manifests/"), 1, "the other scope asks for itself");
    assert_eq!(registry.count("GET", "/blobs/"), 0);
}
