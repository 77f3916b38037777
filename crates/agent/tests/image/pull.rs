//! Pulling from Debian's `docker-registry`: every form of image, and what is in the layers afterwards.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Mutex;

use agent::image::{Digest, Platform, PullErrorKind, PullPolicy, PullProgress, PullRequest};
use serde_json::json;

use crate::support::builder::{Compression, Meta, OCI_INDEX, Tar, TestImage, index, noise};
use crate::support::docker_registry::DockerRegistry;
use crate::support::mounts::Overlay;
use crate::support::{assert_clean, layer, names, open, options, pull, scratch};

#[tokio::test(flavor = "multi_thread")]
async fn pulls_every_compression_and_both_media_types() {
    let registry = DockerRegistry::start();
    let root = scratch();
    let store = open(root.path(), options());
    let layers = [
        Tar::new().file("plain", "1").layer(Compression::None),
        Tar::new().file("gzip", noise(3 << 20, 1)).layer(Compression::Gzip),
        Tar::new().file("zstd", noise(3 << 20, 2)).layer(Compression::Zstd),
    ];
    let run = json!({"Entrypoint": ["/e", "x"], "Cmd": ["c"], "Env": ["PATH=/bin"], "User": "7:8", "WorkingDir": "/w",
        "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "Labels": {"k": "v"}});
    let oci = TestImage::with(&layers, &run, "amd64", false);
    let reference = registry.push("a/b", "1", &oci).await;
    let seen = Mutex::new(Vec::new());
    let image = store.pull(PullRequest::new(&reference), |p| seen.lock().unwrap().push(p)).await.unwrap();

    assert_eq!(image.reference, reference);
    assert_eq!(image.manifest_digest, oci.digest());
    assert_eq!(image.config_digest, Digest::of(&oci.blobs[0]));
    assert_eq!(image.diff_ids, layers.iter().map(|l| l.diff_id).collect::<Vec<_>>());
    assert_eq!(image.size, 1 + (6 << 20));
    assert_eq!(std::fs::read(layer(&image, 0).join("plain")).unwrap(), b"1");
    assert_eq!(std::fs::read(layer(&image, 1).join("gzip")).unwrap(), noise(3 << 20, 1));
    assert_eq!(std::fs::read(layer(&image, 2).join("zstd")).unwrap(), noise(3 << 20, 2));
    let config = &image.config;
    assert_eq!((config.entrypoint.join(" "), config.cmd.join(" ")), ("/e x".into(), "c".into()));
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("7:8", "/w"));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(config.labels["k"], "v");

    let seen = seen.into_inner().unwrap();
    let total: u64 = layers.iter().map(|l| l.blob.len() as u64).sum();
    assert_eq!(
        seen.last(),
        Some(&PullProgress { layers_total: 3, layers_done: 3, bytes_total: total, bytes_done: total })
    );
    assert!(seen.windows(2).all(|w| w[0].bytes_done <= w[1].bytes_done), "progress never goes back");

    let docker = TestImage::with(&layers[..2], &run, "amd64", true);
    let reference = registry.push("a/docker", "latest", &docker).await;
    let again = pull(&store, reference.strip_suffix(":latest").unwrap()).await.unwrap();
    assert_eq!(again.layers, image.layers[..2], "layers are shared");
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn picks_the_platform_from_an_index() {
    let registry = DockerRegistry::start();
    let root = scratch();
    let store = open(root.path(), options());
    let amd = TestImage::new(&[Tar::new().file("amd64", "").layer(Compression::Gzip)]);
    let arm =
        TestImage::with(&[Tar::new().file("arm64", "").layer(Compression::Gzip)], &json!({}), "arm64", false);
    let client = reqwest::Client::new();
    for image in [&amd, &arm] {
        registry.push("multi", "x", image).await;
    }
    let text = index(&[(&arm, "arm64", "v8"), (&amd, "amd64", "")]);
    let reference = registry.push_manifest(&client, "multi", "latest", OCI_INDEX, &text).await;
    for (platform, expected) in [(Platform::LinuxAmd64, &amd), (Platform::LinuxArm64, &arm)] {
        let request = PullRequest { platform, ..PullRequest::new(&reference) };
        let image = store.pull(request, |_| {}).await.unwrap();
        assert_eq!(image.manifest_digest, expected.digest(), "{platform}");
    }
    // By the index's digest, and with a tag beside it that does not exist.
    let by_digest = format!("{}/multi:nothing@{}", registry.host, Digest::of(&text));
    assert_eq!(pull(&store, &by_digest).await.unwrap().manifest_digest, amd.digest());

    let only_arm =
        registry.push_manifest(&client, "multi", "arm", OCI_INDEX, &index(&[(&arm, "arm64", "")])).await;
    let error = store
        .pull(PullRequest { platform: Platform::LinuxAmd64, ..PullRequest::new(&only_arm) }, |_| {})
        .await
        .unwrap_err();
    assert_eq!(
        error.reason(),
        "pull image manifest has been retried 1 time(s): image Manifest does not contain descriptor matching platform \
         'linux/amd64'"
    );
    // The same without an index: the config says what it is for.
    let bare = registry.push("bare", "arm", &arm).await;
    let error = store
        .pull(PullRequest { platform: Platform::LinuxAmd64, ..PullRequest::new(&bare) }, |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::NoMatchingPlatform(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_images_read_as_on_fargate() {
    let registry = DockerRegistry::start();
    let root = scratch();
    let store = open(root.path(), options());
    let name = format!("{}/nothing:here", registry.host);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), &PullErrorKind::NotFound(name.clone()));
    assert_eq!(
        error.reason(),
        format!(
            "pull image manifest has been retried 1 time(s): failed to resolve ref {name}: {name}: not found"
        )
    );
    let error = pull(&store, "Not A Reference").await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::InvalidReference(_)), "{error}");
    let refused = pull(&store, "127.0.0.1:1/x").await.unwrap_err();
    assert_eq!(
        refused.reason(),
        "pull image manifest has been retried 3 time(s): failed to resolve ref 127.0.0.1:1/x:latest: failed to do \
         request: Get \"http://127.0.0.1:1/v2/x/manifests/latest\": connect: connection refused"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_followed_and_a_registry_that_is_down_is_not_needed() {
    let mut registry = DockerRegistry::start();
    let root = scratch();
    let store = open(root.path(), options());
    let first = TestImage::new(&[Tar::new().file("v", "1").layer(Compression::Gzip)]);
    let second = TestImage::new(&[Tar::new().file("v", "2").layer(Compression::Gzip)]);
    let reference = registry.push("app", "latest", &first).await;
    assert_eq!(pull(&store, &reference).await.unwrap().manifest_digest, first.digest());
    registry.push("app", "latest", &second).await;
    let cached = PullRequest { policy: PullPolicy::IfNotPresent, ..PullRequest::new(&reference) };
    assert_eq!(store.pull(cached, |_| {}).await.unwrap().manifest_digest, first.digest());
    assert_eq!(pull(&store, &reference).await.unwrap().manifest_digest, second.digest());
    registry.stop();
    assert_eq!(pull(&store, &reference).await.unwrap().manifest_digest, second.digest());
    // Over a restart of the store, too.
    drop(store);
    let store = open(root.path(), options());
    assert_eq!(pull(&store, &reference).await.unwrap().manifest_digest, second.digest());
    assert_eq!(store.lookup("", &reference).unwrap().manifest_digest, second.digest());
    // But not for another scope, which may not be allowed to have it.
    let other = PullRequest { scope: "other".into(), ..PullRequest::new(&reference) };
    let error = store.pull(other, |_| {}).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::Unreachable(_)), "{error}");
    assert!(store.lookup("other", &reference).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_keep_owners_modes_times_xattrs_links_and_whiteouts() {
    let registry = DockerRegistry::start();
    let root = scratch();
    let store = open(root.path(), options());
    // cap_net_raw+ep, as `setcap` stores it (VFS_CAP_REVISION_2).
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let meta = |mode, uid, gid| Meta { mode, uid, gid, mtime: 1_234_567_890 };
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let lower = Tar::new()
        .dir("./", meta(0o755, 0, 0))
        .dir("./etc/", meta(0o750, 3, 4))
        .file_as("./etc/config", "lower", meta(0o640, 3, 4))
        .file("etc/removed", "x")
        .file("whole/one", "x")
        .file("whole/two", "x")
        .file("opaque/hidden", "x")
        .file_as("bin/su", "s", meta(0o4755, 0, 0))
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"kept\0raw"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .file_as("bin/ping", "p", meta(0o755, 65_535, 65_534))
        .hard_link("bin/ping6", "./bin/ping")
        .hard_link("/bin/ping4", "/bin/ping")
        .symlink("bin/sh", "/bin/dash")
        .symlink("out", "../../../../etc/passwd")
        .raw(b'6', b"run/fifo", b"", b"", meta(0o622, 1, 2))
        .file(&long, "long")
        .file("/absolute", "stays inside")
        .pax(&[("mtime", b"1700000000.123456789"), ("path", b"unicode-\xc3\xa9")])
        .file("short", "u")
        .layer(Compression::Gzip);
    let upper = Tar::new()
        .file_as("etc/config", "upper", meta(0o600, 5, 6))
        .file("etc/.wh.removed", "")
        .file(".wh.whole", "")
        .file("opaque/new", "n")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh..wh.plnk/ignored", "")
        .layer(Compression::Zstd);
    let reference = registry.push("meta", "1", &TestImage::new(&[lower, upper])).await;
    let image = pull(&store, &reference).await.unwrap();

    let below = layer(&image, 0);
    let stat = |path: &str| std::fs::symlink_metadata(below.join(path)).unwrap();
    assert_eq!((stat("etc").uid(), stat("etc").gid(), stat("etc").mode() & 0o7777), (3, 4, 0o750));
    assert_eq!(stat("etc").mtime(), 1_234_567_890, "a directory's time is set after what is put into it");
    assert_eq!(stat(".").mtime(), 1_234_567_890);
    assert_eq!(stat("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!((stat("bin/ping").uid(), stat("bin/ping").gid()), (65_535, 65_534));
    assert_eq!(stat("bin/ping").nlink(), 3);
    assert_eq!(stat("bin/ping").ino(), stat("bin/ping4").ino());
    assert!(stat("run/fifo").file_type().is_fifo());
    assert_eq!((stat("run/fifo").mode() & 0o7777, stat("run/fifo").uid()), (0o622, 1));
    assert_eq!(std::fs::read_link(below.join("bin/sh")).unwrap().to_str(), Some("/bin/dash"));
    assert_eq!((stat("unicode-é").mtime(), stat("unicode-é").mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(std::fs::read(below.join(&long)).unwrap(), b"long");
    assert_eq!(std::fs::read(below.join("absolute")).unwrap(), b"stays inside");
    let xattr = |path: &str, name: &str| {
        let mut value = [0; 256];
        rustix::fs::lgetxattr(below.join(path), name, &mut value[..]).map(|n| value[..n].to_vec())
    };
    assert_eq!(xattr("bin/ping", "security.capability").unwrap(), capability);
    assert_eq!(xattr("bin/ping", "user.note").unwrap(), b"kept\0raw");
    for dropped in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        assert_eq!(xattr("bin/ping", dropped), Err(rustix::io::Errno::NODATA), "{dropped}");
    }

    let merged = Overlay::mount(&image);
    assert_eq!(std::fs::read(merged.path("etc/config")).unwrap(), b"upper");
    assert_eq!(merged.list("etc"), ["config"]);
    assert_eq!(merged.list("opaque"), ["new"]);
    assert!(!merged.path("whole").exists());
    assert!(!merged.list("").iter().any(|name| name.contains(".wh.")));
    assert_eq!(std::fs::symlink_metadata(merged.path("bin/ping6")).unwrap().nlink(), 3);
    drop(merged);
    assert_eq!(names(root.path(), "layers").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_listed_twice_is_stacked_once_and_an_image_may_have_none() {
    let registry = DockerRegistry::start();
    let root = scratch();
    let store = open(root.path(), options());
    let a = Tar::new().file("x", "a").layer(Compression::Gzip);
    let b = Tar::new().file(".wh.x", "").file("y", "b").layer(Compression::Gzip);
    let image = TestImage::new(&[a.clone(), b.clone(), a.clone()]);
    let image = pull(&store, &registry.push("twice", "1", &image).await).await.unwrap();
    assert_eq!(image.diff_ids.len(), 3);
    assert_eq!(image.layers.len(), 2);
    let merged = Overlay::mount(&image);
    assert_eq!(merged.list(""), ["x", "y"]);
    let empty = pull(&store, &registry.push("empty", "1", &TestImage::new(&[])).await).await.unwrap();
    assert!(empty.layers.is_empty());
}
