//! What the image tests build and start: layers and images, Debian's `docker-registry`, a registry with faults, mounts.

pub mod builder;
pub mod docker_registry;
pub mod faulty;
pub mod mounts;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::image::{Image, ImageOptions, ImageStore, PullError, PullRequest};
use std::sync::Arc;

/// A directory below /tmp that goes away with the test. On the disk's own file system: overlayfs takes it as a layer.
pub struct Scratch(PathBuf);

pub fn scratch() -> Scratch {
    Scratch(tempfile::Builder::new().prefix("image-test-").tempdir_in("/tmp").unwrap().keep())
}

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A store's upkeep may still be writing for a moment after the store has gone.
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.0.exists() && std::fs::remove_dir_all(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Options that suit tests.
pub fn options() -> ImageOptions {
    ImageOptions { min_free_bytes: 1 << 20, ..ImageOptions::default() }
}

/// Opens a store in `root` with the TLS provider in place.
pub fn open(root: &Path, options: ImageOptions) -> ImageStore {
    // An earlier test of this process may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ImageStore::open(root.join("store"), options).unwrap()
}

pub async fn pull(store: &ImageStore, reference: &str) -> Result<Arc<Image>, PullError> {
    store.pull(PullRequest::new(reference), |_| {}).await
}

/// What is below a directory of the store, by name.
pub fn names(root: &Path, directory: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root.join("store").join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Asserts that nothing unfinished is left.
pub async fn assert_clean(root: &Path) {
    let root = root.to_owned();
    until("tmp is empty", || names(&root, "tmp").is_empty()).await;
}

/// Waits until `condition` holds, for at most 20 seconds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The layer's directory with this place in the image, 0 being the lowest.
pub fn layer(image: &Image, place: usize) -> PathBuf {
    image.layers[place].clone()
}
