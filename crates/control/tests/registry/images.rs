//! Manifests, tags, lists.

use control::registry::Digest;
use control::registry::record::TagMutability;
use http::Method;
use serde_json::json;

use crate::harness::{
    DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Server, image_manifest, index_manifest, name, namespace,
};

#[tokio::test]
async fn a_manifest_is_kept_byte_for_byte() {
    let server = Server::start().await;
    server.push_blob("app", b"{}").await;
    server.push_blob("app", b"layer").await;
    let manifest = format!(" \n{}\n\n", image_manifest(b"{}", b"layer").replace(',', " ,\t"));
    let digest = Digest::of(manifest.as_bytes());
    let put = server.put_manifest("app", "v1", OCI_MANIFEST, &manifest).await.expect(201);
    assert_eq!(put.header("docker-content-digest"), digest.to_string());
    assert_eq!(put.header("location"), format!("/v2/app/manifests/{digest}"));
    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/app/manifests/{reference}");
        let got = server.get(&path).await.expect(200);
        assert_eq!(got.body, manifest);
        assert_eq!(got.header("content-type"), OCI_MANIFEST);
        let head = server.send(Method::HEAD, &path, &[], "").await.expect(200);
        assert_eq!(head.header("content-length"), manifest.len().to_string());
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
    }
    // A manifest is no blob, and a digest has to fit.
    server.get(&format!("/v2/app/blobs/{digest}")).await.expect(404);
    let wrong = Digest::of(b"x").to_string();
    let answer = server.put_manifest("app", &wrong, OCI_MANIFEST, &manifest).await.expect(400);
    assert_eq!(answer.code(), "DIGEST_INVALID");
    server.put_manifest("app", &digest.to_string(), OCI_MANIFEST, &manifest).await.expect(201);
}

#[tokio::test]
async fn a_manifest_needs_all_it_refers_to() {
    let server = Server::start().await;
    let manifest = image_manifest(b"{}", b"layer");
    assert_eq!(
        server.put_manifest("app", "v1", OCI_MANIFEST, &manifest).await.expect(404).code(),
        "NAME_UNKNOWN"
    );
    server.push_blob("app", b"{}").await;
    let answer = server.put_manifest("app", "v1", OCI_MANIFEST, &manifest).await.expect(400);
    assert_eq!(answer.code(), "MANIFEST_BLOB_UNKNOWN");
    // In another repository it does not count.
    server.push_blob("other", b"layer").await;
    server.put_manifest("app", "v1", OCI_MANIFEST, &manifest).await.expect(400);
    server.push_blob("app", b"layer").await;
    server.put_manifest("app", "v1", OCI_MANIFEST, &manifest).await.expect(201);
    // A size that is not the blob's.
    let lying = manifest.replace("\"size\":5", "\"size\":6");
    let answer = server.put_manifest("app", "v2", OCI_MANIFEST, &lying).await.expect(400);
    assert_eq!(answer.code(), "MANIFEST_INVALID");
    let index = index_manifest(&[(Digest::of(b"nothing"), 1)]);
    let answer = server.put_manifest("app", "v2", OCI_INDEX, &index).await.expect(400);
    assert_eq!(answer.code(), "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn what_is_no_manifest_is_refused() {
    let server = Server::start().await;
    server.push_image("app", "v1", b"layer").await;
    let good = image_manifest(b"{}", b"layer");
    for (media_type, body) in [
        (OCI_MANIFEST, "nonsense"),
        (OCI_MANIFEST, ""),
        (DOCKER_MANIFEST, good.as_str()),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1,"fsLayers":[]}"#),
        ("text/html", good.as_str()),
    ] {
        let answer = server.put_manifest("app", "v2", media_type, body).await.expect(400);
        assert_eq!(answer.code(), "MANIFEST_INVALID", "{media_type} {body}");
    }
    let long = format!("{}{good}", " ".repeat(4 << 20));
    let answer = server.put_manifest("app", "v2", OCI_MANIFEST, &long).await.expect(413);
    assert_eq!(answer.code(), "SIZE_INVALID");
    server.get("/v2/app/manifests/v2").await.expect(404);
}

#[tokio::test]
async fn lists_hold_their_images_and_can_take_their_tag() {
    let server = Server::start().await;
    let child = server.push_image("app", "v1", b"layer").await;
    let size = image_manifest(b"{}", b"layer").len();
    let index = index_manifest(&[(child, size), (child, size)]);
    // The list takes the tag of the image that it refers to.
    server.put_manifest("app", "v1", OCI_INDEX, &index).await.expect(201);
    let got = server.get("/v2/app/manifests/v1").await.expect(200);
    assert_eq!(got.header("content-type"), OCI_INDEX);
    let list = Digest::of(index.as_bytes());
    let delete = async |reference: &str| {
        server.send(Method::DELETE, &format!("/v2/app/manifests/{reference}"), &[], "").await
    };
    assert_eq!(delete(&child.to_string()).await.expect(403).code(), "DENIED");
    delete(&list.to_string()).await.expect(202);
    server.get("/v2/app/manifests/v1").await.expect(404);
    server.get(&format!("/v2/app/manifests/{child}")).await.expect(200);
    delete(&child.to_string()).await.expect(202);
    assert_eq!(delete(&child.to_string()).await.expect(404).code(), "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_tag_moves_and_goes_without_its_image() {
    let server = Server::start().await;
    let first = server.push_image("app", "latest", b"one").await;
    let second = server.push_image("app", "latest", b"two").await;
    let latest = async || {
        let answer = server.get("/v2/app/manifests/latest").await;
        answer.header("docker-content-digest").to_owned()
    };
    assert_eq!(latest().await, second.to_string());
    server.get(&format!("/v2/app/manifests/{first}")).await.expect(200);
    server.send(Method::DELETE, "/v2/app/manifests/latest", &[], "").await.expect(202);
    server.get("/v2/app/manifests/latest").await.expect(404);
    server.get(&format!("/v2/app/manifests/{second}")).await.expect(200);
    assert_eq!(server.get("/v2/app/tags/list").await.json(), json!({"name": "app", "tags": []}));
}

#[tokio::test]
async fn an_immutable_tag_stays() {
    let server = Server::start().await;
    server.push_image("app", "v1", b"one").await;
    server.push_image("app", "dev", b"one").await;
    server
        .registry
        .update_repository(&namespace(), &name("app"), |repository| {
            repository.tag_mutability = TagMutability::Immutable;
            repository.mutability_exclusions = vec!["dev*".to_owned()];
            Ok(())
        })
        .await
        .unwrap();
    server.push_blob("app", b"two").await;
    let other = image_manifest(b"{}", b"two");
    let answer = server.put_manifest("app", "v1", OCI_MANIFEST, &other).await.expect(400);
    assert_eq!(answer.code(), "TAG_INVALID");
    assert!(
        String::from_utf8_lossy(&answer.body).contains("cannot be overwritten because the tag is immutable")
    );
    // The same image again is no overwriting, and an excluded tag moves.
    server.put_manifest("app", "v1", OCI_MANIFEST, &image_manifest(b"{}", b"one")).await.expect(201);
    server.put_manifest("app", "dev", OCI_MANIFEST, &other).await.expect(201);
    server.put_manifest("app", "v2", OCI_MANIFEST, &other).await.expect(201);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::start().await;
    for repository in ["app", "app/web", "b-app", "zz"] {
        for tag in ["a", "b", "c", "d", "e"] {
            server.push_image(repository, tag, b"layer").await;
        }
    }
    for (first, member) in [("/v2/app/tags/list?n=2", "tags"), ("/v2/_catalog?n=2", "repositories")] {
        let mut path = first.to_owned();
        let mut seen = Vec::new();
        loop {
            let answer = server.get(&path).await.expect(200);
            let page = answer.json()[member].as_array().unwrap().clone();
            assert!(page.len() <= 2);
            seen.extend(page);
            let link = answer.header("link");
            match link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")) {
                Some(next) => path = next.to_owned(),
                None => break,
            }
        }
        let expected = match member {
            "tags" => json!(["a", "b", "c", "d", "e"]),
            _ => json!(["app", "app/web", "b-app", "zz"]),
        };
        assert_eq!(json!(seen), expected);
    }
    let all = server.get("/v2/app/tags/list").await.expect(200);
    assert_eq!(all.json()["tags"].as_array().unwrap().len(), 5);
    assert_eq!(server.get("/v2/app/tags/list?n=0").await.json()["tags"], json!([]));
    assert_eq!(server.get("/v2/app/tags/list?n=9&last=c").await.json()["tags"], json!(["d", "e"]));
    server.get("/v2/app/tags/list?n=x").await.expect(400);
    assert_eq!(server.get("/v2/none/tags/list").await.expect(404).code(), "NAME_UNKNOWN");
}

#[tokio::test]
async fn referrers_are_listed_by_subject_and_type() {
    let server = Server::start().await;
    let subject = server.push_image("app", "v1", b"layer").await;
    let path = format!("/v2/app/referrers/{subject}");
    let empty = server.get(&path).await.expect(200);
    assert_eq!(empty.header("content-type"), OCI_INDEX);
    assert_eq!(empty.json()["manifests"], json!([]));
    let mut referrers = Vec::new();
    for kind in ["application/sbom", "application/signature"] {
        let mut manifest: serde_json::Value = serde_json::from_str(&image_manifest(b"{}", b"layer")).unwrap();
        manifest["artifactType"] = kind.into();
        manifest["annotations"] = json!({"made.by": kind});
        manifest["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 1});
        let manifest = manifest.to_string();
        let digest = Digest::of(manifest.as_bytes()).to_string();
        let put = server.put_manifest("app", &digest, OCI_MANIFEST, &manifest).await.expect(201);
        assert_eq!(put.header("oci-subject"), subject.to_string());
        referrers.push((digest, manifest.len()));
    }
    let all = server.get(&path).await.expect(200).json();
    assert_eq!(all["manifests"].as_array().unwrap().len(), 2);
    let filtered = server.get(&format!("{path}?artifactType=application%2Fsbom")).await.expect(200);
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(
        filtered.json()["manifests"],
        json!([{"mediaType": OCI_MANIFEST, "digest": referrers[0].0, "size": referrers[0].1,
            "artifactType": "application/sbom", "annotations": {"made.by": "application/sbom"}}])
    );
    let delete = format!("/v2/app/manifests/{}", referrers[0].0);
    server.send(Method::DELETE, &delete, &[], "").await.expect(202);
    assert_eq!(server.get(&path).await.json()["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pushes_of_one_tag_leave_one_truth() {
    let server = Server::start().await;
    server.push_blob("app", b"{}").await;
    let pushes = (0..12).map(|n| {
        let server = &server;
        async move { server.push_image("app", "latest", format!("layer {n}").as_bytes()).await }
    });
    let pushed = futures_util::future::join_all(pushes).await;
    let latest = server.get("/v2/app/manifests/latest").await.expect(200);
    let latest = latest.header("docker-content-digest");
    let mut tagged = Vec::new();
    for digest in pushed {
        let reference = control::registry::Reference::Digest(digest);
        let image = server.registry.image(&namespace(), &name("app"), &reference).await.unwrap();
        if !image.tags.is_empty() {
            tagged.push(digest.to_string());
        }
    }
    assert_eq!(tagged, [latest]);
}
