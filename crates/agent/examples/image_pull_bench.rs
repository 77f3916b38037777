//! Measures a pull of a 200 MB, 8-layer image from a local registry, beside `skopeo copy` and `docker pull`.
//!
//! `cargo run --release -p agent --example image_pull_bench [rounds]`, as root. Starts Debian's `docker-registry` on a
//! loopback port, makes an image of text-like files and programs, and pulls it in turn with each tool, each time into an
//! empty store. Tools that are not installed are left out. skopeo's `dir:` only stores the compressed blobs; its
//! `containers-storage:` and Docker unpack them, as this store does. "durable" waits for the disk, which the others do not.

#[path = "../tests/image/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::image::{ImageOptions, ImageStore, PullRequest};
use support::builder::{Compression, Layer, Meta, Tar, TestImage, noise};
use support::docker_registry::DockerRegistry;

const MIB: usize = 1 << 20;
/// Sizes of the layers in MiB, as of an image of a base system, a runtime, dependencies and an application.
const LAYERS: [usize; 8] = [75, 45, 30, 20, 12, 10, 6, 2];

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5);
    let registry = DockerRegistry::start();
    let layers: Vec<Layer> = LAYERS.iter().enumerate().map(|(seed, mib)| layer(*mib, seed as u64)).collect();
    let compressed: usize = layers.iter().map(|l| l.blob.len()).sum();
    let image = TestImage::new(&layers);
    let reference = registry.push("bench", "1", &image).await;
    println!(
        "image: 8 layers, {} MiB unpacked, {} MiB compressed (gzip), medians of {rounds} rounds",
        LAYERS.iter().sum::<usize>(),
        compressed / MIB
    );
    let docker = Docker::start();
    let mut rows: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut add = |name, took: Option<Duration>| {
        if let Some(took) = took {
            match rows.iter_mut().find(|(n, _)| *n == name) {
                Some((_, times)) => times.push(took),
                None => rows.push((name, vec![took])),
            }
        }
    };
    // In turns, so that what else the machine does falls on all alike.
    // Nothing is deleted before the end: ext4 is slow to make files anew where some were deleted in the last seconds.
    let root = support::scratch();
    for round in 0..rounds {
        let place = |name: &str| {
            let place = root.path().join(format!("{name}{round}"));
            std::fs::create_dir(&place).unwrap();
            place
        };
        let (pulled, durable) = coracle(&reference, &place("coracle")).await;
        add("coracle", Some(pulled));
        add("coracle, durable", Some(durable));
        add("skopeo copy to dir: (not unpacked)", skopeo(&reference, "dir", &place("dir")));
        add("skopeo copy to containers-storage:", skopeo(&reference, "storage", &place("storage")));
        add("docker pull", docker.as_ref().and_then(|docker| docker.pull(&reference)));
    }
    for (name, mut times) in rows {
        times.sort();
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        println!(
            "{name:38} {:8.0} ms   (best {:.0}, worst {:.0})",
            ms(times[times.len() / 2]),
            ms(times[0]),
            ms(times[times.len() - 1])
        );
    }
}

/// A layer of files between 1 KiB and 2 MiB, about half of which does not compress.
fn layer(mib: usize, seed: u64) -> Layer {
    let mut tar = Tar::new();
    let mut left = mib * MIB;
    let mut number = 0;
    while left > 0 {
        let size = [1 << 10, 6 << 10, 40 << 10, 300 << 10, 2 << 20][number % 5].min(left);
        let random = noise(size / 2 + 1, seed * 100_000 + number as u64);
        let data: Vec<u8> = random
            .chunks(64)
            .flat_map(|c| {
                c.iter().copied().chain(*b"lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do ")
            })
            .take(size)
            .collect();
        let meta = Meta { mode: 0o644, ..Meta::default() };
        tar = tar.file_as(&format!("layer{seed}/dir{}/file{number}", number / 50), data, meta);
        left -= size;
        number += 1;
    }
    tar.layer(Compression::Gzip)
}

async fn coracle(reference: &str, root: &Path) -> (Duration, Duration) {
    let store = ImageStore::open(root.join("store"), ImageOptions::default()).unwrap();
    let began = Instant::now();
    let image = store.pull(PullRequest::new(reference), |_| {}).await.unwrap();
    let pulled = began.elapsed();
    assert_eq!(image.layers.len(), LAYERS.len());
    store.flush().await.unwrap();
    (pulled, began.elapsed())
}

fn skopeo(reference: &str, to: &str, root: &Path) -> Option<Duration> {
    let path = |name: &str| root.join(name).display().to_string();
    let destination = match to {
        "dir" => format!("dir:{}", path("copy")),
        _ => format!("containers-storage:[overlay@{}+{}]bench:1", path("graph"), path("run")),
    };
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
    let took = time(command.arg(format!("docker://{reference}")).arg(destination));
    // A store of overlays may be mounted once at its end.
    let _ = Command::new("umount").arg(root.join("graph/overlay")).stderr(Stdio::null()).status();
    took
}

fn time(command: &mut Command) -> Option<Duration> {
    let began = Instant::now();
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().ok()?;
    if !output.status.success() {
        eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(began.elapsed())
}

/// A Docker daemon of its own, with nothing of the host's.
struct Docker {
    daemon: Child,
    root: support::Scratch,
}

impl Docker {
    fn start() -> Option<Self> {
        let root = support::scratch();
        let path = |name: &str| root.path().join(name);
        let daemon = Command::new("dockerd")
            .args(["--bridge=none", "--iptables=false", "--storage-driver=overlay2"])
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg(format!("--host=unix://{}", path("socket").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let docker = Self { daemon, root };
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if docker.run(&["info"]).is_some_and(|status| status.success()) {
                return Some(docker);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("dockerd does not start; left out");
        None
    }

    fn client(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg(format!("--host=unix://{}", self.socket().display()));
        command
    }

    fn socket(&self) -> std::path::PathBuf {
        Path::new(self.root.path()).join("socket")
    }

    fn run(&self, arguments: &[&str]) -> Option<std::process::ExitStatus> {
        self.client().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()
    }

    fn pull(&self, reference: &str) -> Option<Duration> {
        let took = time(self.client().args(["pull", "--quiet", reference]));
        self.run(&["image", "rm", "--force", reference]);
        took
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Asked to end, it ends its containerd too.
        let pid = nix::unistd::Pid::from_raw(self.daemon.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}
