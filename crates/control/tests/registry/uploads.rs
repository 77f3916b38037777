//! Uploads in all their ways.

use std::collections::HashSet;
use std::io::Write as _;

use control::registry::Digest;
use http::Method;

use crate::harness::{Server, eventually};

#[tokio::test]
async fn chunks_follow_each_other_and_can_be_resumed() {
    let server = Server::start().await;
    let content = vec![7; 3000];
    let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    let location = begun.header("location").to_owned();
    assert_eq!(begun.header("range"), "0-0");
    let patch = async |range: &str, body: &[u8]| {
        server.send(Method::PATCH, &location, &[("content-range", range)], body.to_vec()).await
    };
    assert_eq!(patch("0-999", &content[..1000]).await.expect(202).header("range"), "0-999");
    // Out of order, and not as announced.
    let refused = patch("2000-2999", &content[2000..]).await.expect(416);
    assert_eq!((refused.header("range"), refused.header("location")), ("0-999", location.as_str()));
    patch("1000-1999", &content[1000..1500]).await.expect(400);
    patch("nonsense", &content[1000..1500]).await.expect(400);
    let status = server.get(&location).await.expect(204);
    assert_eq!(status.header("range"), "0-999");
    patch("1000-1999", &content[1000..2000]).await.expect(202);
    // The last chunk comes with the digest.
    let path = format!("{location}?digest={}", Digest::of(&content));
    let done =
        server.send(Method::PUT, &path, &[("content-range", "2000-2999")], content[2000..].to_vec()).await;
    let done = done.expect(201);
    assert!(server.get(done.header("location")).await.expect(200).body == content);
    // The session is over.
    server.get(&location).await.expect(404);
    server.send(Method::PUT, &path, &[], "").await.expect(404);
}

#[tokio::test]
async fn a_wrong_digest_stores_nothing() {
    let server = Server::start().await;
    let wrong = Digest::of(b"something else");
    let path = format!("/v2/app/blobs/uploads/?digest={wrong}");
    let answer = server.send(Method::POST, &path, &[], "content").await.expect(400);
    assert_eq!(answer.code(), "DIGEST_INVALID");
    let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    let location = begun.header("location");
    server.send(Method::PATCH, location, &[], "content").await.expect(202);
    for query in ["", "?digest=", "?digest=sha512:00", "?digest=sha256:zz"] {
        let answer = server.send(Method::PUT, &format!("{location}{query}"), &[], "").await.expect(400);
        assert_eq!(answer.code(), "DIGEST_INVALID", "{query}");
    }
    server.send(Method::PUT, &format!("{location}?digest={wrong}"), &[], "").await.expect(400);
    server.get(location).await.expect(404);
    for content in [&b"content"[..], b"something else"] {
        let digest = Digest::of(content);
        server.get(&format!("/v2/app/blobs/{digest}")).await.expect(404);
        assert!(!server.blob_file(&digest).exists());
    }
    let uploads = server.directory.join("registry/uploads");
    assert_eq!(std::fs::read_dir(uploads).unwrap().count(), 0);
}

#[tokio::test]
async fn an_interrupted_chunk_is_resumed_where_it_stopped() {
    let server = Server::start().await;
    let content: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
    let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    let location = begun.header("location").to_owned();
    let mut connection = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        connection,
        "PATCH {location} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\n",
        server.authorization(),
        content.len()
    )
    .unwrap();
    connection.write_all(&content[..700_000]).unwrap();
    let data =
        server.directory.join("registry/uploads").join(location.rsplit('/').next().unwrap()).join("data");
    eventually("the first bytes to be written", async || std::fs::metadata(&data).unwrap().len() > 0).await;
    drop(connection);
    // Answered only when the interrupted request has written its last byte.
    let status = server.get(&location).await.expect(204);
    let received: usize = status.header("range").strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    assert!(received <= 700_000);
    server.send(Method::PATCH, &location, &[], content[received..].to_vec()).await.expect(202);
    let digest = Digest::of(&content);
    server.send(Method::PUT, &format!("{location}?digest={digest}"), &[], "").await.expect(201);
    assert!(server.get(&format!("/v2/app/blobs/{digest}")).await.expect(200).body == content);
}

#[tokio::test]
async fn limits_hold() {
    let server = Server::start_with(|options| {
        options.uploads.max_blob_bytes = 1000;
        options.uploads.max_per_account = 3;
    })
    .await;
    let big = vec![1; 1001];
    let path = format!("/v2/app/blobs/uploads/?digest={}", Digest::of(&big));
    server.send(Method::POST, &path, &[], big.clone()).await.expect(413);
    let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    let location = begun.header("location").to_owned();
    server.send(Method::PATCH, &location, &[], vec![1; 600]).await.expect(202);
    server.send(Method::PATCH, &location, &[], vec![1; 600]).await.expect(413);
    // What was there before the chunk that was too much still is.
    assert_eq!(server.get(&location).await.expect(204).header("range"), "0-599");
    server.send(Method::PATCH, &location, &[], vec![1; 400]).await.expect(202);
    for _ in 0..2 {
        server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    }
    let answer = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(429);
    assert_eq!(answer.code(), "TOOMANYREQUESTS");
    server.send(Method::DELETE, &location, &[], "").await.expect(204);
    server.get(&location).await.expect(404);
    server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
}

#[tokio::test]
async fn abandoned_uploads_make_room() {
    let server = Server::start_with(|options| options.uploads.max_per_account = 2).await;
    let mut locations = Vec::new();
    for _ in 0..2 {
        let begun = server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
        locations.push(begun.header("location").to_owned());
    }
    server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(429);
    let id = locations[0].rsplit('/').next().unwrap();
    let data = server.directory.join("registry/uploads").join(id).join("data");
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    std::fs::File::options().write(true).open(data).unwrap().set_modified(hour_ago).unwrap();
    server.send(Method::POST, "/v2/app/blobs/uploads/", &[], "").await.expect(202);
    server.get(&locations[0]).await.expect(404);
    server.get(&locations[1]).await.expect(204);
}

#[tokio::test]
async fn an_interrupted_whole_upload_leaves_no_session() {
    let server = Server::start().await;
    let mut connection = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        connection,
        "POST /v2/app/blobs/uploads/?digest={} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\
         content-length: 1000\r\n\r\nhalf",
        Digest::of(b"x"),
        server.authorization(),
    )
    .unwrap();
    let uploads = server.directory.join("registry/uploads");
    let sessions = || std::fs::read_dir(&uploads).unwrap().count();
    eventually("the session", async || sessions() == 1).await;
    drop(connection);
    eventually("its end", async || sessions() == 0).await;
}

#[tokio::test]
async fn a_mount_shares_the_file() {
    let server = Server::start().await;
    let digest = server.push_blob("one", b"shared").await;
    server.get(&format!("/v2/two/blobs/{digest}")).await.expect(404);
    for (repository, query) in [("two", "&from=one"), ("three", "")] {
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}{query}");
        let mounted = server.send(Method::POST, &path, &[], "").await.expect(201);
        assert_eq!(mounted.header("location"), format!("/v2/{repository}/blobs/{digest}"));
        assert_eq!(&server.get(mounted.header("location")).await.expect(200).body[..], b"shared");
    }
    let missing = Digest::of(b"missing");
    for query in [format!("mount={missing}&from=one"), format!("mount={digest}&from=nowhere")] {
        let path = format!("/v2/four/blobs/uploads/?{query}");
        let begun = server.send(Method::POST, &path, &[], "").await.expect(202);
        assert!(begun.header("location").starts_with("/v2/four/blobs/uploads/"));
    }
}

#[tokio::test]
async fn an_upload_belongs_to_its_repository() {
    let server = Server::start().await;
    let begun = server.send(Method::POST, "/v2/one/blobs/uploads/", &[], "").await.expect(202);
    let moved = begun.header("location").replacen("/one/", "/two/", 1);
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        assert_eq!(server.send(method, &moved, &[], "").await.expect(404).status, 404);
    }
    let path = format!("{moved}?digest={}", Digest::of(b""));
    assert_eq!(server.send(Method::PUT, &path, &[], "").await.expect(404).code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_the_same_blob_at_once_all_succeed() {
    let server = Server::start().await;
    let content = vec![42; 300_000];
    let digest = Digest::of(&content);
    let pushes = (0..16).map(|n| {
        let (server, content) = (&server, &content);
        async move { server.push_blob(&format!("app{}", n % 4), content).await }
    });
    let pushed: HashSet<Digest> = futures_util::future::join_all(pushes).await.into_iter().collect();
    assert_eq!(pushed, HashSet::from([digest]));
    for n in 0..4 {
        assert!(server.get(&format!("/v2/app{n}/blobs/{digest}")).await.expect(200).body == content);
    }
    assert_eq!(std::fs::metadata(server.blob_file(&digest)).unwrap().len(), 300_000);
}
