//! Reading, names, tokens: what a stranger can send.

use std::time::Duration;

use control::registry::Digest;
use http::Method;

use crate::harness::{Server, basic, name, namespace};

#[tokio::test]
async fn every_request_needs_a_token() {
    let server = Server::start().await;
    let digest = server.push_blob("app", b"content").await;
    let other = Server::start().await;
    let expired = server.registry.mint_pull_token(&namespace(), &name("app"), Duration::ZERO);
    let foreign = basic("AWS", &other.password);
    let root = basic("root", &server.password);
    let changed = basic("AWS", &server.password.replacen('.', "x.", 1));
    for authorization in
        ["", "Bearer x", "Basic", "Basic %%", &foreign, &root, &changed, &expired.basic_authorization()]
    {
        for path in [
            "/v2/",
            "/v2",
            "/v2/_catalog",
            "/v2/app/tags/list",
            &format!("/v2/app/blobs/{digest}"),
            "/v2/../../etc/passwd",
            "/v2/nothing/here/at/all",
        ] {
            for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
                let answer = server.send(method, path, &[("authorization", authorization)], "").await;
                let answer = answer.expect(401);
                assert_eq!(answer.code(), "UNAUTHORIZED");
                assert!(answer.header("www-authenticate").starts_with("Basic realm=\"http://127.0.0.1:"));
            }
        }
    }
    let answer = server.get("/v2/").await.expect(200);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
}

#[tokio::test]
async fn a_pull_token_reads_one_repository_and_writes_nothing() {
    let server = Server::start().await;
    let image = server.push_image("app", "v1", b"layer").await;
    server.push_image("other", "v1", b"secret").await;
    let layer = Digest::of(b"layer");
    let token = server.registry.mint_pull_token(&namespace(), &name("app"), Duration::from_secs(60));
    let token = token.basic_authorization();
    let send = async |method, path: &str| {
        server.send(method, path, &[("authorization", &token)], "").await.status.as_u16()
    };
    for path in [
        "/v2/",
        "/v2/app/manifests/v1",
        &format!("/v2/app/manifests/{image}"),
        &format!("/v2/app/blobs/{layer}"),
        "/v2/app/tags/list",
    ] {
        assert_eq!(send(Method::GET, path).await, 200, "{path}");
    }
    let secret = Digest::of(b"secret");
    for (method, path) in [
        (Method::GET, "/v2/other/manifests/v1".to_owned()),
        (Method::GET, format!("/v2/other/blobs/{secret}")),
        (Method::GET, "/v2/_catalog".to_owned()),
        (Method::POST, "/v2/app/blobs/uploads/".to_owned()),
        (Method::POST, format!("/v2/app/blobs/uploads/?mount={secret}&from=other")),
        (Method::PUT, "/v2/app/manifests/v2".to_owned()),
        (Method::DELETE, "/v2/app/manifests/v1".to_owned()),
        (Method::DELETE, format!("/v2/app/blobs/{layer}")),
    ] {
        assert_eq!(send(method, &path).await, 403, "{path}");
    }
    // Through its own repository another's content is not there.
    assert_eq!(send(Method::GET, &format!("/v2/app/blobs/{secret}")).await, 404);
}

#[tokio::test]
async fn a_download_url_is_good_for_its_blob_only() {
    let server = Server::start().await;
    let digest = server.push_blob("app", b"content").await;
    let other = server.push_blob("app", b"other").await;
    let url = server.registry.download_url(&namespace(), &name("app"), &digest);
    let anonymous = [("authorization", "")];
    let answer = server.send(Method::GET, &url, &anonymous, "").await.expect(200);
    assert_eq!(&answer.body[..], b"content");
    let query = url.split_once('?').unwrap().1;
    for path in [format!("/v2/app/blobs/{other}"), "/v2/".to_owned(), "/v2/app/tags/list".to_owned()] {
        server.send(Method::GET, &format!("{path}?{query}"), &anonymous, "").await.expect(403);
    }
    server.send(Method::DELETE, &url, &anonymous, "").await.expect(403);
    // A token that can do more is not taken from a URL.
    let path = format!("/v2/app/blobs/{digest}?X-Coracle-Token={}", server.password);
    server.send(Method::GET, &path, &anonymous, "").await.expect(401);
}

#[tokio::test]
async fn accounts_and_regions_do_not_see_each_other() {
    let server = Server::start().await;
    let digest = server.push_blob("app", b"content").await;
    server.push_image("app", "v1", b"layer").await;
    for (account, region) in [("210987654321", "eu-west-1"), ("123456789012", "us-east-1")] {
        let mut elsewhere = namespace();
        elsewhere.account = model::AccountId::parse(account).unwrap();
        elsewhere.region = model::Region::parse(region).unwrap();
        let (token, _) = server.registry.mint_token(&elsewhere, "someone");
        let token = token.basic_authorization();
        let headers = [("authorization", token.as_str())];
        let send = async |method, path: &str| server.send(method, path, &headers, "").await;
        send(Method::GET, "/v2/app/manifests/v1").await.expect(404);
        send(Method::GET, &format!("/v2/app/blobs/{digest}")).await.expect(404);
        assert_eq!(
            send(Method::GET, "/v2/_catalog").await.expect(200).json()["repositories"],
            serde_json::json!([])
        );
        // Nor does a mount reach across.
        let mount = send(Method::POST, &format!("/v2/app/blobs/uploads/?mount={digest}&from=app")).await;
        mount.expect(202);
        send(Method::GET, &format!("/v2/app/blobs/{digest}")).await.expect(404);
    }
}

#[tokio::test]
async fn blobs_are_served_whole_and_in_ranges() {
    let server = Server::start().await;
    let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = server.push_blob("app", &content).await;
    let path = format!("/v2/app/blobs/{digest}");
    let whole = server.get(&path).await.expect(200);
    assert!(whole.body == content);
    assert_eq!(whole.header("docker-content-digest"), digest.to_string());
    let head = server.send(Method::HEAD, &path, &[], "").await.expect(200);
    assert_eq!((head.header("content-length"), head.body.len()), ("4000000", 0));
    for (range, expected) in [
        ("bytes=10-19", 10..20),
        ("bytes=3999990-", 3_999_990..4_000_000),
        ("bytes=-5", 3_999_995..4_000_000),
    ] {
        let part = server.send(Method::GET, &path, &[("range", range)], "").await.expect(206);
        assert_eq!(
            part.header("content-range"),
            format!("bytes {}-{}/4000000", expected.start, expected.end - 1)
        );
        assert!(part.body == content[expected]);
    }
    let none = server.send(Method::GET, &path, &[("range", "bytes=4000000-")], "").await.expect(416);
    assert_eq!(none.header("content-range"), "bytes */4000000");
}

#[tokio::test]
async fn hostile_names_reach_no_file() {
    let server = Server::start().await;
    server.push_image("app", "v1", b"layer").await;
    let outside = server.directory.join("secret");
    std::fs::write(&outside, "secret").unwrap();
    for path in [
        "/v2/app/blobs/sha256:../../../secret",
        "/v2/app/blobs/sha256%3a..%2f..%2f..%2fsecret",
        "/v2/app/blobs/../../../secret",
        "/v2/../../secret/manifests/v1",
        "/v2/app%2f..%2f..%2fsecret/manifests/v1",
        "/v2/app/manifests/..%2f..%2fsecret",
        "/v2/app/manifests/%00",
        "/v2/app/blobs/uploads/..%2f..%2fsecret",
        "/v2/app/blobs/uploads/../../secret",
        "/v2/APP/tags/list",
        "/v2/%ff/tags/list",
    ] {
        for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = server.send(method, path, &[], "x").await;
            assert!(answer.status.is_client_error(), "{path}: {answer:?}");
            assert!(!answer.body.windows(6).any(|window| window == b"secret"), "{path}");
        }
    }
    let long = "a".repeat(300);
    let answer = server.send(Method::POST, &format!("/v2/{long}/blobs/uploads/"), &[], "").await;
    assert_eq!(answer.expect(400).code(), "NAME_INVALID");
    let answer = server.get(&format!("/v2/app/blobs/sha512:{}", "0".repeat(128))).await.expect(400);
    assert_eq!(answer.code(), "DIGEST_INVALID");
    assert!(answer.json()["errors"][0]["message"].as_str().unwrap().contains("sha512"));
    assert_eq!(std::fs::read_to_string(outside).unwrap(), "secret");
}
