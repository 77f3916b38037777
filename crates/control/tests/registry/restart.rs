//! The registry's process dies in the middle of an upload; the next one goes on.
//!
//! The process is this test program, started again with the ignored test [`serve_until_killed`] and a
//! directory in its environment.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use control::registry::Digest;
use http::Method;

use crate::harness::{OCI_MANIFEST, Server, eventually, image_manifest, send};

const DIRECTORY: &str = "CORACLE_TEST_REGISTRY_DIRECTORY";

#[tokio::test]
#[ignore = "the child process of the tests below"]
async fn serve_until_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let server = Server::start_in(Path::new(&directory), |_| ()).await;
    println!("\nserving {} {}", server.address, server.password);
    std::future::pending::<()>().await;
}

struct Process {
    child: Child,
    address: SocketAddr,
    password: String,
}

impl Process {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["restart::serve_until_killed", "--exact", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find_map(|line| Some(line.unwrap().strip_prefix("serving ")?.to_owned())).unwrap();
        let (address, password) = line.split_once(' ').unwrap();
        Self { child, address: address.parse().unwrap(), password: password.to_owned() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // SIGKILL
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn an_upload_survives_a_kill() {
    let directory = tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let digest = Digest::of(&content);
    let process = Process::start(directory.path());
    let authorization = crate::harness::basic("AWS", &process.password);
    let mut connection = TcpStream::connect(process.address).unwrap();
    write!(
        connection,
        "POST /v2/app/blobs/uploads/ HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
         content-length: 0\r\n\r\n"
    )
    .unwrap();
    let location = BufReader::new(&connection)
        .lines()
        .find_map(|line| Some(line.unwrap().strip_prefix("location: ")?.to_owned()))
        .unwrap();
    let mut connection = TcpStream::connect(process.address).unwrap();
    write!(
        connection,
        "PATCH {location} HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
         content-length: {}\r\n\r\n",
        content.len()
    )
    .unwrap();
    connection.write_all(&content[..1_000_000]).unwrap();
    let id = location.rsplit('/').next().unwrap();
    let data = directory.path().join("registry/uploads").join(id).join("data");
    eventually("bytes in the file", async || std::fs::metadata(&data).unwrap().len() > 0).await;
    drop(process);

    let server = Server::start_in(directory.path(), |_| ()).await;
    // A token of before is good still: the key is in the state.
    let status =
        server.send(Method::GET, &location, &[("authorization", &authorization)], "").await.expect(204);
    let received = status.header("range").strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    assert!(received <= 1_000_000);
    server.send(Method::PATCH, &location, &[], content[received..].to_vec()).await.expect(202);
    server.send(Method::PUT, &format!("{location}?digest={digest}"), &[], "").await.expect(201);
    assert!(server.get(&format!("/v2/app/blobs/{digest}")).await.expect(200).body == content);
}

/// Pushes image after image to a process that is killed so many microseconds after the `round`th was
/// answered. Returns the tags whose pushes were answered.
async fn push_until_killed(mut process: Process, round: usize, after: u64) -> Vec<String> {
    let authorization = crate::harness::basic("AWS", &process.password);
    let (client, address) = (crate::harness::http_client(), process.address);
    let (count, mut counted) = tokio::sync::watch::channel(0);
    let pushing = tokio::spawn(async move {
        let mut answered = Vec::new();
        let push = async |method, path: String, headers: &[(&str, &str)], body: Vec<u8>| {
            let sent = send(&client, address, &authorization, method, &path, headers, body.into());
            sent.await.ok().filter(|answer| answer.status == 201).map(|_| ())
        };
        for number in 0.. {
            let layer = layer(round, number);
            let pushed = async {
                for content in [b"{}".to_vec(), layer.clone()] {
                    let path = format!("/v2/app/blobs/uploads/?digest={}", Digest::of(&content));
                    push(Method::POST, path, &[], content).await?;
                }
                let manifest = image_manifest(b"{}", &layer).into_bytes();
                // One tag of its own, and one that moves.
                for tag in [format!("v{round}-{number}"), "latest".to_owned()] {
                    let path = format!("/v2/app/manifests/{tag}");
                    push(Method::PUT, path, &[("content-type", OCI_MANIFEST)], manifest.clone()).await?;
                }
                Some(())
            };
            if pushed.await.is_none() {
                break;
            }
            answered.push(format!("v{round}-{number}"));
            count.send_replace(answered.len());
        }
        answered
    });
    counted.wait_for(|count| *count > round).await.unwrap();
    // The moment of the kill within a push is what is varied; nothing is waited for.
    tokio::time::sleep(Duration::from_micros(after)).await;
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    pushing.await.unwrap()
}

fn layer(round: usize, number: usize) -> Vec<u8> {
    format!("layer {round} {number} ").repeat(2000 + number).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_kills_at_any_moment() {
    let directory = tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap();
    let mut answered = Vec::new();
    for (round, after) in [0, 1_300, 3_700, 6_100, 9_000, 14_000, 19_000, 27_000].into_iter().enumerate() {
        answered.extend(push_until_killed(Process::start(directory.path()), round, after).await);
    }
    assert!(!answered.is_empty());
    let server = Server::start_in(directory.path(), |options| options.collect_after = Duration::ZERO).await;
    server.registry.sweep(control::clock::Clock::system().now()).await.unwrap();
    let listed = server.get("/v2/app/tags/list").await.expect(200).json();
    for tag in listed["tags"].as_array().unwrap() {
        // Everything that has a name is whole, answered or not.
        let manifest = server.get(&format!("/v2/app/manifests/{}", tag.as_str().unwrap())).await.expect(200);
        assert_eq!(Digest::of(&manifest.body).to_string(), manifest.header("docker-content-digest"));
        let digest = manifest.json()["layers"][0]["digest"].as_str().unwrap().to_owned();
        let blob = server.get(&format!("/v2/app/blobs/{digest}")).await.expect(200);
        assert_eq!(Digest::of(&blob.body).to_string(), digest);
    }
    for tag in answered {
        assert!(listed["tags"].as_array().unwrap().contains(&tag.clone().into()), "{tag} is lost");
    }
    assert_eq!(std::fs::read_dir(directory.path().join("registry/incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_crash_left_is_cleared() {
    let directory = tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap();
    let incomplete = directory.path().join("registry/uploads/0b6ed6a5-2d1c-4a50-8a55-2f6c3a1f1b6e");
    std::fs::create_dir_all(&incomplete).unwrap();
    std::fs::write(incomplete.join("data"), "half").unwrap();
    let incoming = directory.path().join("registry/incoming");
    std::fs::create_dir_all(&incoming).unwrap();
    std::fs::write(incoming.join("half"), "half").unwrap();
    let server = Server::start_in(directory.path(), |_| ()).await;
    assert!(!incomplete.exists() && !incoming.join("half").exists());
    // A file that was renamed into place, but whose link a crash prevented.
    let digest = Digest::of(b"orphan");
    std::fs::write(server.blob_file(&digest), "orphan").unwrap();
    server.get(&format!("/v2/app/blobs/{digest}")).await.expect(404);
    let swept = server.registry.sweep(control::clock::Clock::system().now()).await.unwrap();
    assert_eq!(swept.removed_files, 1);
}
