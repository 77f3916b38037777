//! The clients that people push with, as Debian ships them. A client that is not installed is left out,
//! and the test says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::harness::{Server, eventually};

fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()));
    if !found {
        eprintln!("{program} is not installed: not tested");
    }
    found
}

fn temporary() -> TempDir {
    tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap()
}

/// Runs a program off the runtime's threads, with a home of its own.
async fn run(home: &Path, program: &str, arguments: &[&str], input: &str) -> Output {
    use std::io::Write as _;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .env("DOCKER_CONFIG", home.join("docker"))
        .env("REGISTRY_AUTH_FILE", home.join("auth.json"))
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let input = input.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // A program that does not read it may have gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap()
}

#[track_caller]
fn succeeded(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// An OCI layout with one image of two layers, named `v1`. Returns its directory.
fn oci_layout(directory: &Path) -> PathBuf {
    use control::registry::Digest;
    let layout = directory.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |content: &[u8]| {
        let digest = Digest::of(content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        (digest.to_string(), content.len())
    };
    let mut layers = Vec::new();
    let mut diffs = Vec::new();
    for number in 0..2u8 {
        let root = directory.join(format!("layer{number}"));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let noise: Vec<u8> =
            (0..400_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number).collect();
        std::fs::write(root.join(format!("etc/file{number}")), noise).unwrap();
        let tar =
            Command::new("tar").args(["--sort=name", "-C"]).arg(&root).args(["-c", "."]).output().unwrap();
        assert!(tar.status.success());
        let (digest, size) = put(&tar.stdout);
        diffs.push(digest.clone());
        layers.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}));
    }
    let config = serde_json::json!({"architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/true"]}, "rootfs": {"type": "layers", "diff_ids": diffs}});
    let (digest, size) = put(config.to_string().as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size},
        "layers": layers});
    let (digest, size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {"org.opencontainers.image.ref.name": "v1"}}]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layout
}

/// The same image as a file for `load`, named `image`. Returns the file.
async fn docker_archive(directory: &Path, image: &str) -> String {
    let archive = directory.join("image.tar").display().to_string();
    let source = format!("oci:{}:v1", oci_layout(directory).display());
    let destination = format!("docker-archive:{archive}:{image}");
    succeeded(run(directory, "skopeo", &["copy", "--insecure-policy", &source, &destination], "").await);
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_in_and_out() {
    if !installed("skopeo") {
        return;
    }
    let server = Server::start().await;
    let home = temporary();
    let layout = oci_layout(home.path());
    let source = format!("oci:{}:v1", layout.display());
    let image = format!("docker://{}/team/app", server.address);
    let credentials = format!("AWS:{}", server.password);
    let skopeo = async |arguments: &[&str]| run(home.path(), "skopeo", arguments, "").await;
    for (tag, format) in [("oci", "oci"), ("docker", "v2s2")] {
        let destination = format!("{image}:{tag}");
        succeeded(
            skopeo(&[
                "copy",
                "--insecure-policy",
                "--dest-tls-verify=false",
                "--dest-creds",
                &credentials,
                "-f",
                format,
                &source,
                &destination,
            ])
            .await,
        );
        let back = format!("dir:{}", home.path().join(format!("back-{tag}")).display());
        succeeded(
            skopeo(&[
                "copy",
                "--insecure-policy",
                "--src-tls-verify=false",
                "--src-creds",
                &credentials,
                &destination,
                &back,
            ])
            .await,
        );
    }
    let listed =
        succeeded(skopeo(&["list-tags", "--tls-verify=false", "--creds", &credentials, &image]).await);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["Tags"], serde_json::json!(["docker", "oci"]));
    // Byte for byte, with the digest that the layout has.
    let other = format!("docker://{}/other/app:v1", server.address);
    succeeded(
        skopeo(&[
            "copy",
            "--insecure-policy",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds",
            &credentials,
            "--dest-creds",
            &credentials,
            &format!("{image}:oci"),
            &other,
        ])
        .await,
    );
    let oci = server.get("/v2/team/app/manifests/oci").await.expect(200);
    assert_eq!(oci.body, server.get("/v2/other/app/manifests/v1").await.expect(200).body);
    let delete =
        skopeo(&["delete", "--tls-verify=false", "--creds", &credentials, &format!("{image}:docker")]).await;
    succeeded(delete);
    server.get("/v2/team/app/manifests/docker").await.expect(404);
    // Without the token nothing is told.
    let denied = skopeo(&["inspect", "--tls-verify=false", "--no-creds", &format!("{image}:oci")]).await;
    assert!(!denied.status.success());
    let wrong = skopeo(&["inspect", "--tls-verify=false", "--creds", "AWS:x", &format!("{image}:oci")]).await;
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("authorization token is not valid"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_logs_in_pushes_and_pulls() {
    if !installed("podman") || !installed("skopeo") {
        return;
    }
    let server = Server::start().await;
    let home = temporary();
    let (root, runroot) = (home.path().join("root"), home.path().join("run"));
    let podman = async |arguments: &[&str], input: &str| {
        let storage = [
            "--root",
            root.to_str().unwrap(),
            "--runroot",
            runroot.to_str().unwrap(),
            "--storage-driver",
            "vfs",
        ];
        let arguments: Vec<&str> = storage.iter().chain(arguments).copied().collect();
        run(home.path(), "podman", &arguments, input).await
    };
    let host = format!("localhost:{}", server.address.port());
    let login = ["login", "-u", "AWS", "--password-stdin", "--tls-verify=false", &host];
    succeeded(podman(&login, &server.password).await);
    let image = format!("{host}/app:v1");
    let archive = docker_archive(home.path(), &image).await;
    succeeded(podman(&["load", "-q", "-i", &archive], "").await);
    let id = succeeded(podman(&["images", "-q", "--no-trunc"], "").await);
    let id = id.trim().trim_start_matches("sha256:");
    succeeded(podman(&["push", "--tls-verify=false", &image], "").await);
    server.get("/v2/app/manifests/v1").await.expect(200);
    succeeded(podman(&["rmi", "-af"], "").await);
    let pulled = succeeded(podman(&["pull", "-q", "--tls-verify=false", &image], "").await);
    assert_eq!(pulled.trim(), id);
    succeeded(podman(&["rmi", "-af"], "").await);
}

/// A Docker daemon of the test's own.
struct Docker {
    child: std::process::Child,
    home: TempDir,
}

impl Docker {
    fn start() -> Self {
        let home = temporary();
        let path = |name: &str| home.path().join(name).display().to_string();
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        // Not the machine's.
        std::fs::write(home.path().join("config.json"), "{}").unwrap();
        let child = Command::new("dockerd")
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .args(["--host", &format!("unix://{}", path("socket")), "--storage-driver", "vfs"])
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--config-file",
                &path("config.json"),
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, home }
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Output {
        let host = format!("unix://{}", self.home.path().join("socket").display());
        let arguments: Vec<&str> = ["--host", &host].iter().chain(arguments).copied().collect();
        run(self.home.path(), "docker", &arguments, input).await
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // It has to stop its containerd, so it is asked.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) {
            if std::time::Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_pushes_and_pulls() {
    if !installed("aws")
        || !installed("docker")
        || !installed("dockerd")
        || !installed("containerd")
        || !installed("skopeo")
    {
        return;
    }
    let server = Server::start().await;
    let mut docker = Docker::start();
    let log = docker.home.path().join("log");
    eventually("dockerd", async || {
        if let Ok(Some(status)) = docker.child.try_wait() {
            panic!("dockerd ended with {status}: {}", std::fs::read_to_string(&log).unwrap());
        }
        docker.run(&["version"], "").await.status.success()
    })
    .await;
    let host = format!("localhost:{}", server.address.port());
    // As every guide for ECR says.
    let endpoint = format!("http://{}", server.address);
    let get_password = ["ecr", "get-login-password", "--endpoint-url", &endpoint, "--region", "eu-west-1"];
    let password = succeeded(run(docker.home.path(), "aws", &get_password, "").await);
    succeeded(docker.run(&["login", "-u", "AWS", "--password-stdin", &host], &password).await);
    let image = format!("{host}/team/app:v1");
    let archive = docker_archive(docker.home.path(), &image).await;
    succeeded(docker.run(&["load", "-q", "-i", &archive], "").await);
    succeeded(docker.run(&["push", "-q", &image], "").await);
    server.get("/v2/team/app/manifests/v1").await.expect(200);
    // A second tag finds every layer there already, another repository mounts them.
    for other in [format!("{host}/team/app:v2"), format!("{host}/team/copy:v1")] {
        succeeded(docker.run(&["tag", &image, &other], "").await);
        succeeded(docker.run(&["push", "-q", &other], "").await);
    }
    server.get("/v2/team/copy/manifests/v1").await.expect(200);
    let removed = ["rmi", "-f", &image, &format!("{host}/team/app:v2"), &format!("{host}/team/copy:v1")];
    succeeded(docker.run(&removed, "").await);
    succeeded(docker.run(&["pull", "-q", &image], "").await);
    succeeded(docker.run(&["logout", &host], "").await);
    let denied = docker.run(&["pull", "-q", &image], "").await;
    assert!(!denied.status.success());
}
