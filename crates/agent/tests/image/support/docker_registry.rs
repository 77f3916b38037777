//! Debian's `docker-registry`, on a loopback port of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::image::Digest;

use super::builder::TestImage;

pub struct DockerRegistry {
    child: Child,
    pub host: String,
    _directory: super::Scratch,
}

impl DockerRegistry {
    /// Starts it and waits until it answers. The package is part of the project's set-up: without it the test fails.
    pub fn start() -> Self {
        Self::start_with(super::scratch(), "")
    }

    /// The same over TLS. Also gives the certificate of the authority that vouches for it, as PEM.
    pub fn start_tls() -> (Self, Vec<u8>) {
        let directory = super::scratch();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let certify = |name: &str, extra: &[&str]| {
            let made = Command::new("openssl")
                .args([
                    "req",
                    "-config",
                    "/dev/null",
                    "-x509",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    &format!("/CN={name}"),
                ])
                .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
                .args(["-keyout", &path(&format!("{name}.key")), "-out", &path(&format!("{name}.pem"))])
                .args(extra)
                .stderr(Stdio::null())
                .status()
                .expect("openssl is not installed: apt-get install openssl");
            assert!(made.success());
        };
        certify("authority", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        let (authority, key) = (path("authority.pem"), path("authority.key"));
        certify("registry", &["-CA", &authority, "-CAkey", &key, "-addext", "subjectAltName=IP:127.0.0.1"]);
        let tls =
            format!("  tls:\n    certificate: {}\n    key: {}\n", path("registry.pem"), path("registry.key"));
        let authority = std::fs::read(authority).unwrap();
        (Self::start_with(directory, &tls), authority)
    }

    fn start_with(directory: super::Scratch, http: &str) -> Self {
        for _ in 0..5 {
            // Another process may take the port in between; then the registry ends, and another port is tried.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = directory.path().join("config.yml");
            let root = directory.path().join("data");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{http}",
                root.display()
            );
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is not installed: apt-get install docker-registry");
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { child, host: format!("127.0.0.1:{port}"), _directory: directory };
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }

    /// Pushes an image under `name` and `tag`, and gives its reference.
    pub async fn push(&self, name: &str, tag: &str, image: &TestImage) -> String {
        let client = reqwest::Client::new();
        for blob in &image.blobs {
            self.push_blob(&client, name, blob).await;
        }
        self.push_manifest(&client, name, tag, image.media_type, &image.manifest).await
    }

    pub async fn push_blob(&self, client: &reqwest::Client, name: &str, blob: &[u8]) {
        let host = &self.host;
        let answer = client.post(format!("http://{host}/v2/{name}/blobs/uploads/")).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        let mut location: reqwest::Url = answer.headers()["location"].to_str().unwrap().parse().unwrap();
        location.query_pairs_mut().append_pair("digest", &Digest::of(blob).to_string());
        let answer = client.put(location).body(blob.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    pub async fn push_manifest(
        &self,
        client: &reqwest::Client,
        name: &str,
        tag: &str,
        media_type: &str,
        manifest: &[u8],
    ) -> String {
        let host = &self.host;
        let request = client.put(format!("http://{host}/v2/{name}/manifests/{tag}"));
        let answer = request.header("content-type", media_type).body(manifest.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        format!("{host}/{name}:{tag}")
    }

    /// Ends it, as when the registry is down.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}
