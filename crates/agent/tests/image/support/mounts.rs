//! An overlay over an image's layers, unmounted with the test.

use std::path::{Path, PathBuf};

use agent::image::Image;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub struct Overlay {
    directory: super::Scratch,
}

impl Overlay {
    pub fn mount(image: &Image) -> Self {
        let directory = super::scratch();
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        // overlayfs wants the highest first.
        let lower: Vec<&str> = image.layers.iter().rev().map(|l| l.to_str().unwrap()).collect();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), path("upper"), path("work"));
        let merged = directory.path().join("merged");
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { directory }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root().join(below)
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("merged")
    }

    /// Names in a directory, in order.
    pub fn list(&self, below: &str) -> Vec<String> {
        list(&self.path(below))
    }
}

pub fn list(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.root(), MntFlags::MNT_DETACH);
    }
}
