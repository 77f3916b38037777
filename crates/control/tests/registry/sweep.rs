//! What goes away by itself, and what does not.

use std::time::Duration;

use control::clock::Clock;
use control::registry::record::LifecyclePolicyRecord;
use control::registry::{Digest, RegistryError};
use http::Method;
use model::Timestamp;

use crate::harness::{OCI_MANIFEST, Server, image_manifest, name, namespace};

const HOUR: i64 = 3_600_000;

async fn start() -> (Server, Clock) {
    let clock = Clock::manual(Timestamp(1_700_000_000_000));
    let options_clock = clock.clone();
    let server = Server::start_with(move |options| {
        options.clock = options_clock;
        options.collect_after = Duration::from_secs(3600);
    })
    .await;
    (server, clock)
}

#[tokio::test]
async fn unreferenced_blobs_go_after_their_time() {
    let (server, clock) = start().await;
    let image = server.push_image("app", "v1", b"layer").await;
    let kept = Digest::of(b"layer");
    let orphan = server.push_blob("app", b"orphan").await;
    let mounted = format!("/v2/other/blobs/uploads/?mount={orphan}&from=app");
    server.send(Method::POST, &mounted, &[], "").await.expect(201);
    assert_eq!(server.registry.sweep(clock.now()).await.unwrap(), Default::default());

    clock.advance(HOUR - 1);
    // A pusher that asks for a blob is about to refer to it.
    server.send(Method::HEAD, &format!("/v2/other/blobs/{orphan}"), &[], "").await.expect(200);
    clock.advance(1);
    let swept = server.registry.sweep(clock.now()).await.unwrap();
    assert_eq!((swept.unlinked_blobs, swept.removed_files), (1, 0));
    server.get(&format!("/v2/app/blobs/{orphan}")).await.expect(404);
    server.get(&format!("/v2/other/blobs/{orphan}")).await.expect(200);

    clock.advance(HOUR);
    let swept = server.registry.sweep(clock.now()).await.unwrap();
    assert_eq!((swept.unlinked_blobs, swept.removed_files, swept.removed_bytes), (1, 1, 6));
    assert!(!server.blob_file(&orphan).exists());
    assert_eq!(&server.get(&format!("/v2/app/blobs/{kept}")).await.expect(200).body[..], b"layer");

    // Without its image everything goes, the manifest's bytes too.
    server.send(Method::DELETE, &format!("/v2/app/manifests/{image}"), &[], "").await.expect(202);
    clock.advance(HOUR);
    let swept = server.registry.sweep(clock.now()).await.unwrap();
    assert_eq!((swept.unlinked_blobs, swept.removed_files), (3, 3));
    for digest in [image, kept, Digest::of(b"{}")] {
        assert!(!server.blob_file(&digest).exists());
    }
}

#[tokio::test]
async fn a_deleted_repository_takes_its_content_along() {
    let (server, clock) = start().await;
    server.push_image("app", "v1", b"layer").await;
    server.push_image("app/web", "v1", b"layer").await;
    let delete = async |force| server.registry.delete_repository(&namespace(), &name("app"), force).await;
    assert!(matches!(delete(false).await, Err(RegistryError::RepositoryNotEmpty(_))));
    server.get("/v2/app/manifests/v1").await.expect(200);
    delete(true).await.unwrap();
    assert_eq!(server.get("/v2/app/manifests/v1").await.expect(404).code(), "NAME_UNKNOWN");
    clock.advance(HOUR);
    let swept = server.registry.sweep(clock.now()).await.unwrap();
    // The other repository, whose name begins alike, holds the files.
    assert_eq!((swept.unlinked_blobs, swept.removed_files), (3, 0));
    server.get("/v2/app/web/manifests/v1").await.expect(200);
    server.get(&format!("/v2/app/web/blobs/{}", Digest::of(b"layer"))).await.expect(200);
}

#[tokio::test]
async fn an_empty_repository_is_deleted_without_force() {
    let (server, _) = start().await;
    let image = server.push_image("app", "v1", b"layer").await;
    server.send(Method::DELETE, &format!("/v2/app/manifests/{image}"), &[], "").await.expect(202);
    server.registry.delete_repository(&namespace(), &name("app"), false).await.unwrap();
    server.get("/v2/app/tags/list").await.expect(404);
}

#[tokio::test]
async fn lifecycle_policies_are_applied() {
    let (server, clock) = start().await;
    let text = serde_json::json!({"rules": [
        {"rulePriority": 1, "selection": {"tagStatus": "tagged", "tagPrefixList": ["release"],
            "countType": "imageCountMoreThan", "countNumber": 1}, "action": {"type": "expire"}},
        {"rulePriority": 2, "selection": {"tagStatus": "any", "countType": "sinceImagePushed",
            "countUnit": "days", "countNumber": 2}, "action": {"type": "expire"}},
    ]});
    for day in 0..4 {
        let layer = format!("layer {day}");
        server.push_image("app", &format!("release-{day}"), layer.as_bytes()).await;
        server.push_image("app", &format!("build-{day}"), format!("b {day}").as_bytes()).await;
        clock.advance(24 * HOUR);
    }
    let policy = LifecyclePolicyRecord { text: text.to_string(), last_evaluated_at: None };
    server.registry.set_lifecycle_policy(&namespace(), &name("app"), Some(&policy)).await.unwrap();
    let swept = server.registry.sweep(clock.now()).await.unwrap();
    // Releases 0 to 2 by count; builds 0 to 2 are 4, 3 and 2 days old.
    assert_eq!(swept.expired_images, 6);
    let tags = server.get("/v2/app/tags/list").await.expect(200).json();
    assert_eq!(tags["tags"], serde_json::json!(["build-3", "release-3"]));
    let policy = server.registry.lifecycle_policy(&namespace(), &name("app")).await.unwrap().unwrap();
    assert_eq!(policy.last_evaluated_at, Some(clock.now().millis()));
    // Their blobs were old enough already.
    assert!(swept.removed_files >= 12);
    server.get(&format!("/v2/app/blobs/{}", Digest::of(b"layer 3"))).await.expect(200);
}

#[tokio::test]
async fn old_uploads_expire() {
    let server = Server::start().await;
    let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    let location = begun.header("location");
    server.send(Method::PATCH, location, &[], "some").await.expect(202);
    let now = Clock::system().now();
    assert_eq!(server.registry.sweep(now).await.unwrap().expired_uploads, 0);
    let tomorrow = Timestamp(now.millis() + 25 * HOUR);
    assert_eq!(server.registry.sweep(tomorrow).await.unwrap().expired_uploads, 1);
    server.get(location).await.expect(404);
}

#[tokio::test]
async fn a_cleared_registry_is_empty() {
    let server = Server::start().await;
    server.push_image("app", "v1", b"layer").await;
    let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    server.registry.clear().await.unwrap();
    assert_eq!(server.get("/v2/_catalog").await.json()["repositories"], serde_json::json!([]));
    server.get(begun.header("location")).await.expect(404);
    assert!(!server.blob_file(&Digest::of(b"layer")).exists());
    server.push_image("app", "v1", b"layer").await;
    server.get("/v2/app/manifests/v1").await.expect(200);
}

/// Pushes and sweeps without any grace, all at once: every push that was answered is whole.
#[tokio::test(flavor = "multi_thread")]
async fn sweeps_and_pushes_do_not_hurt_each_other() {
    let server = Server::start_with(|options| options.collect_after = Duration::ZERO).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let push = async {
        let mut images = Vec::new();
        for n in 0..40 {
            let layer = format!("layer {}", n % 7);
            // A sweep can take the blobs before the manifest comes: then the client sends them again.
            loop {
                server.push_blob("app", b"{}").await;
                server.push_blob("app", layer.as_bytes()).await;
                let manifest = image_manifest(b"{}", layer.as_bytes());
                let put = server.put_manifest("app", &format!("v{n}"), OCI_MANIFEST, &manifest).await;
                if put.status == 201 {
                    break;
                }
                assert_eq!(put.expect(400).code(), "MANIFEST_BLOB_UNKNOWN");
            }
            images.push((n, layer));
            if n % 5 == 4 {
                let (n, _) = images.remove(0);
                let path = format!("/v2/app/manifests/v{n}");
                let digest = server.get(&path).await.header("docker-content-digest").to_owned();
                server
                    .send(Method::DELETE, &format!("/v2/app/manifests/{digest}"), &[], "")
                    .await
                    .expect(202);
                images.retain(|(_, layer)| {
                    Digest::of(image_manifest(b"{}", layer.as_bytes()).as_bytes()).to_string() != digest
                });
            }
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        images
    };
    let sweep = async {
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            server.registry.sweep(Clock::system().now()).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (images, ()) = tokio::join!(push, sweep);
    server.registry.sweep(Clock::system().now()).await.unwrap();
    for (n, layer) in images {
        server.get(&format!("/v2/app/manifests/v{n}")).await.expect(200);
        let digest = Digest::of(layer.as_bytes());
        assert_eq!(server.get(&format!("/v2/app/blobs/{digest}")).await.expect(200).body, layer);
    }
}
