//! Layers that attack the host, or that are not what they say: each refused with its reason, and nothing left behind.

use std::path::Path;

use agent::image::{ImageOptions, ImageStore, PullError, PullErrorKind};

use crate::support::builder::{Compression, Layer, Meta, Tar, TestImage, gzip, layer_of, noise};
use crate::support::faulty::Faulty;
use crate::support::{assert_clean, names, open, options, pull, scratch};

struct Bench {
    registry: Faulty,
    root: crate::support::Scratch,
    store: ImageStore,
}

impl Bench {
    async fn new(options: ImageOptions) -> Self {
        let root = scratch();
        let store = open(root.path(), options);
        Self { registry: Faulty::start().await, root, store }
    }

    /// Pulls an image of this layer, asserting that it is refused and that no trace stays.
    async fn refuse(&self, layer: Layer) -> PullError {
        self.refuse_image(&TestImage::new(&[layer])).await
    }

    async fn refuse_image(&self, image: &TestImage) -> PullError {
        let reference = self.registry.add("hostile", "x", image);
        let error = pull(&self.store, &reference).await.expect_err("it was taken");
        assert_eq!(names(self.root.path(), "layers"), Vec::<String>::new(), "{error}");
        assert_eq!(names(self.root.path(), "refs"), Vec::<String>::new(), "{error}");
        assert_clean(self.root.path()).await;
        assert!(error.reason().len() < 1024 && !error.reason().contains('\n'), "{error}");
        error
    }

    /// Asserts that the layer is refused as hostile, for a reason that holds `why`.
    async fn hostile(&self, tar: Tar, why: &str) {
        let error = self.refuse(tar.layer(Compression::Gzip)).await;
        let PullErrorKind::Hostile { .. } = error.kind() else { panic!("not hostile: {error}") };
        assert!(error.reason().contains(why), "{error} does not say {why:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_leave_the_layer_are_refused() {
    let bench = Bench::new(options()).await;
    let outside = bench.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let out = outside.to_str().unwrap();
    let raw = |kind: u8, path: &str, link: &str| {
        Tar::new().raw(kind, path.as_bytes(), link.as_bytes(), b"", Meta::default())
    };
    bench.hostile(raw(b'0', "../evil", ""), "`..`").await;
    bench.hostile(raw(b'0', "a/../../evil", ""), "`..`").await;
    bench.hostile(raw(b'0', "/../evil", ""), "`..`").await;
    bench.hostile(raw(b'5', "..", ""), "`..`").await;
    bench.hostile(raw(b'2', "../link", "x"), "`..`").await;
    bench.hostile(raw(b'0', "../.wh.evil", ""), "`..`").await;
    bench.hostile(Tar::new().pax(&[("path", b"../evil")]).file("x", ""), "`..`").await;
    bench.hostile(Tar::new().pax(&[("path", b"a\0b")]).file("x", ""), "NUL").await;

    bench.hostile(Tar::new().symlink("s", out).file("s/evil", "x"), "symlink").await;
    bench.hostile(Tar::new().symlink("s", "../../..").file("s/evil", "x"), "symlink").await;
    bench.hostile(Tar::new().symlink("s", "/").file("s/tmp/evil", "x"), "symlink").await;
    bench.hostile(Tar::new().symlink("s", out).dir("s/evil", Meta::default()), "symlink").await;
    bench.hostile(Tar::new().symlink("s", out).file("s/.wh.x", ""), "symlink").await;
    bench.hostile(Tar::new().symlink("s", out).file("s/.wh..wh..opq", ""), "symlink").await;
    bench.hostile(Tar::new().symlink("s", "/proc/self").file("s/root/evil", ""), "symlink").await;
    bench.hostile(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""), "loop").await;
    bench.hostile(Tar::new().symlink("a", "nowhere").file("a/x", ""), "symlink to nothing").await;
    bench.hostile(Tar::new().file("a", "").file("a/x", ""), "not a directory").await;

    bench.hostile(Tar::new().hard_link("h", "/etc/passwd"), "not in the layer").await;
    bench.hostile(Tar::new().hard_link("h", "../../etc/passwd"), "`..`").await;
    bench.hostile(Tar::new().symlink("s", "/etc").hard_link("h", "s/passwd"), "symlink").await;
    bench.hostile(Tar::new().dir("d", Meta::default()).hard_link("h", "d"), "directory").await;
    bench.hostile(Tar::new().hard_link("h", "/"), "root").await;
    bench.hostile(Tar::new().file("h", "").hard_link("h", "h"), "itself").await;

    bench.hostile(raw(b'0', "a/.wh...", ""), "whiteout").await;
    bench.hostile(raw(b'0', "a/.wh..", ""), "whiteout").await;
    bench.hostile(raw(b'0', ".wh.", ""), "whiteout").await;
    bench.hostile(raw(b'0', ".", ""), "root").await;
    bench.hostile(raw(b'2', "s", ""), "target").await;
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing was written outside");
    assert!(!bench.root.path().join("evil").exists() && !Path::new("/tmp/evil").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_is_never_written_through() {
    let bench = Bench::new(options()).await;
    let secret = bench.root.path().join("secret");
    std::fs::write(&secret, "untouched").unwrap();
    let target = secret.to_str().unwrap();
    // A later entry of the same name replaces the link; entries below a link within the layer follow it.
    let tar = Tar::new()
        .symlink("link", target)
        .file("link", "own")
        .dir("usr/lib", Meta { mode: 0o755, ..Meta::default() })
        .symlink("lib", "usr/lib")
        .file("lib/libc.so", "c")
        .symlink("usr/share", "../usr/lib")
        .file("usr/share/deep/doc", "d")
        .symlink("dir", "/etc")
        .dir("dir", Meta { mode: 0o700, ..Meta::default() })
        .file("dir/inside", "i")
        .hard_link("hard", "lib/libc.so");
    let reference = bench.registry.add("links", "x", &TestImage::new(&[tar.layer(Compression::Gzip)]));
    let image = pull(&bench.store, &reference).await.unwrap();
    let read = |path: &str| std::fs::read_to_string(image.layers[0].join(path)).unwrap();
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
    assert_eq!(read("link"), "own");
    assert_eq!(read("usr/lib/libc.so"), "c");
    assert_eq!(read("usr/lib/deep/doc"), "d");
    assert_eq!(read("hard"), "c");
    assert_eq!(read("dir/inside"), "i");
    assert!(std::fs::symlink_metadata(image.layers[0].join("dir")).unwrap().is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_refused() {
    let bench = Bench::new(options()).await;
    for (kind, name) in [(b'3', "char"), (b'4', "block")] {
        let mut header = tar::Header::new_gnu();
        header.set_path(format!("dev/{name}")).unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(0);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        bench.hostile(Tar::new().bytes(header.as_bytes()), "device nodes are not allowed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_it_says_is_refused() {
    let bench = Bench::new(options()).await;
    let good = Tar::new().file("a", noise(200_000, 1)).layer(Compression::Gzip);
    let other = Tar::new().file("a", noise(200_000, 2)).layer(Compression::Gzip);

    // Another content of the same length under the layer's digest.
    let mut swapped = good.blob.clone();
    let last = swapped.len() - 1;
    swapped[last - 4000] ^= 1;
    let image = TestImage::new(std::slice::from_ref(&good));
    bench.registry.add("hostile", "x", &image);
    bench.registry.add_blob_as(&good.digest().to_string(), &swapped);
    let error = pull(&bench.store, &format!("{}/hostile:x", bench.registry.host)).await.unwrap_err();
    let PullErrorKind::DigestMismatch { expected, actual, .. } = error.kind() else { panic!("{error}") };
    assert_eq!((*expected, *actual), (good.digest(), agent::image::Digest::of(&swapped)));
    assert!(error.reason().contains(&good.digest().to_string()), "{error}");
    assert_clean(bench.root.path()).await;
    assert!(names(bench.root.path(), "layers").is_empty());

    // The right bytes, but not what the config says that they unpack to.
    let lying = Layer { diff_id: other.diff_id, ..good.clone() };
    let error = bench.refuse(lying).await;
    assert!(
        matches!(error.kind(), PullErrorKind::DigestMismatch { .. }) && error.reason().contains("diff id"),
        "{error}"
    );

    // A wrong manifest under a digest, and a registry that lies about a tag's.
    let digest = agent::image::Digest::of(b"another");
    bench.registry.add_manifest("hostile", &digest.to_string(), image.media_type, &image.manifest);
    let error = pull(&bench.store, &format!("{}/hostile@{digest}", bench.registry.host)).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::DigestMismatch { .. }), "{error}");
    *bench.registry.behaviour().content_digest.lock().unwrap() = Some(digest.to_string());
    let error = bench.refuse_image(&image).await;
    assert!(matches!(error.kind(), PullErrorKind::DigestMismatch { .. }), "{error}");
    *bench.registry.behaviour().content_digest.lock().unwrap() = None;

    // More bytes, and fewer, than the manifest says.
    let size = format!("\"size\":{}", good.blob.len());
    let error =
        bench.refuse_image(&image.clone().edit(&size, &format!("\"size\":{}", good.blob.len() - 1))).await;
    assert!(matches!(error.kind(), PullErrorKind::SizeMismatch { .. }), "{error}");
    let error =
        bench.refuse_image(&image.clone().edit(&size, &format!("\"size\":{}", good.blob.len() + 1))).await;
    assert!(matches!(error.kind(), PullErrorKind::Truncated(_)), "{error}");

    // A config that is not the one named, of the same length.
    let config = image.blobs[0].clone();
    let changed = String::from_utf8(config.clone()).unwrap().replace("linux", "Linux");
    bench.registry.add("hostile", "x", &image);
    bench.registry.add_blob_as(&good.digest().to_string(), &good.blob);
    bench.registry.add_blob_as(&agent::image::Digest::of(&config).to_string(), changed.as_bytes());
    let error = pull(&bench.store, &format!("{}/hostile:x", bench.registry.host)).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::DigestMismatch { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_corrupt_layers_are_refused() {
    let bench = Bench::new(options()).await;
    let archive = Tar::new().file("a", noise(300_000, 3)).archive();
    let cut = |compression, keep: f64| {
        let whole = layer_of(&archive, compression);
        let length = (whole.blob.len() as f64 * keep) as usize;
        Layer { blob: whole.blob[..length].to_vec(), ..whole }
    };
    for compression in [Compression::Gzip, Compression::Zstd] {
        for keep in [0.001, 0.5, 0.999] {
            let error = bench.refuse(cut(compression, keep)).await;
            assert!(matches!(error.kind(), PullErrorKind::Truncated(_)), "{compression:?} {keep}: {error}");
            assert!(error.reason().contains("unexpected EOF"), "{error}");
        }
    }
    // Truly truncated archives, whose digests are right.
    for keep in [100, 512, 1000, 200_000] {
        let error = bench.refuse(layer_of(&archive[..keep], Compression::Gzip)).await;
        assert!(matches!(error.kind(), PullErrorKind::Truncated(_)), "{keep}: {error}");
    }
    let garbage = [gzip(&archive), noise(100, 1)].concat();
    let error = bench.refuse(Layer { blob: garbage, ..layer_of(&archive, Compression::Gzip) }).await;
    assert!(matches!(error.kind(), PullErrorKind::Malformed(_)), "{error}");
    let error = bench.refuse(layer_of(&noise(5000, 9), Compression::None)).await;
    assert!(matches!(error.kind(), PullErrorKind::Malformed(_)), "{error}");
    let bad_type = Tar::new().raw(b'V', b"volume", b"", b"", Meta::default());
    let error = bench.refuse(bad_type.layer(Compression::Gzip)).await;
    assert!(error.reason().contains("unhandled tar header type"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused() {
    let bench =
        Bench::new(ImageOptions { layer_limit_bytes: 1 << 20, layer_limit_entries: 100, ..options() }).await;
    let too_large = |error: &PullError| matches!(error.kind(), PullErrorKind::TooLarge { .. });
    // 1 GiB of zeros in a megabyte.
    let zeros = Tar::new().file("zeros", vec![0; 64 << 20]).layer(Compression::Gzip);
    assert!(zeros.blob.len() < 1 << 20);
    let error = bench.refuse(zeros).await;
    assert!(too_large(&error), "{error}");
    // Many files that are each within the bound; zeros after the archive's end; many entries.
    let mut many = Tar::new();
    for index in 0..20 {
        many = many.file(&format!("f{index}"), vec![0; 100_000]);
    }
    assert!(too_large(&bench.refuse(many.layer(Compression::Zstd)).await));
    let tail = [Tar::new().file("a", "").archive(), vec![0; 4 << 20]].concat();
    assert!(too_large(&bench.refuse(layer_of(&tail, Compression::Gzip)).await));
    let mut entries = Tar::new();
    for index in 0..200 {
        entries = entries.file(&format!("f{index}"), "");
    }
    assert!(too_large(&bench.refuse(entries.layer(Compression::Gzip)).await));
    // Directories that only paths imply count, too.
    let mut implied = Tar::new();
    for index in 0..20 {
        implied = implied.file(&format!("{index}/{}", "d/".repeat(40) + "f"), "");
    }
    assert!(too_large(&bench.refuse(implied.layer(Compression::Gzip)).await));
    // Paths and headers without end.
    bench.hostile(Tar::new().pax(&[("path", "a/".repeat(300).as_bytes())]).file("x", ""), "deeper").await;
    bench.hostile(Tar::new().pax(&[("path", "a".repeat(5000).as_bytes())]).file("x", ""), "longer").await;
    bench
        .hostile(Tar::new().pax(&[("path", "a".repeat(300).as_bytes())]).file("x", ""), "name is too long")
        .await;
    let endless = Tar::new().pax(&[("comment", &vec![b'x'; 2 << 20])]).file("x", "");
    let error = bench.refuse(endless.layer(Compression::Gzip)).await;
    assert!(error.reason().contains("extended header"), "{error}");
    let huge = Tar::new().pax(&[("SCHILY.xattr.user.x", &vec![b'x'; 100_000])]).file("x", "");
    bench.hostile(huge, "extended attributes").await;
    // An image of layers that are each within the bound.
    let bench = Bench::new(ImageOptions { image_limit_bytes: 150_000, ..options() }).await;
    let layers: Vec<Layer> =
        (0..2).map(|n| Tar::new().file("x", noise(100_000, n)).layer(Compression::None)).collect();
    let reference = bench.registry.add("large", "x", &TestImage::new(&layers));
    let error = pull(&bench.store, &reference).await.unwrap_err();
    assert!(too_large(&error) && error.reason().contains("image"), "{error}");
    assert!(bench.store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_left_as_it_was() {
    // A file system of its own, small enough to fill.
    let root = scratch();
    let mount = root.path().join("store");
    std::fs::create_dir(&mount).unwrap();
    let data = Some("size=8m,mode=0700");
    nix::mount::mount(Some("tmpfs"), &mount, Some("tmpfs"), nix::mount::MsFlags::empty(), data).unwrap();
    let _unmount = Unmount(mount);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = open(root.path(), ImageOptions { min_free_bytes: 0, ..options() });
    let registry = Faulty::start().await;
    // 40 MB of one byte: small on the wire, so that only the writing finds out. (Not zero: that is not written.)
    let ones = registry.add(
        "ones",
        "x",
        &TestImage::new(&[Tar::new().file("z", vec![1; 40 << 20]).layer(Compression::Gzip)]),
    );
    let error = pull(&store, &ones).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::DiskFull(_)), "{error}");
    assert!(error.reason().ends_with("write z: no space left on device"), "{error}");
    assert_clean(root.path()).await;
    // 9 MB that do not compress are refused before a byte of them is asked for.
    let layer = Tar::new().file("n", noise(9 << 20, 1)).layer(Compression::Gzip);
    let digest = layer.digest().to_string();
    let error = pull(&store, &registry.add("noise", "x", &TestImage::new(&[layer]))).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::DiskFull(_)), "{error}");
    assert_eq!(registry.count("GET", &digest), 0);
    // And what fits still works; what nobody uses makes room for it.
    for seed in 0..3 {
        let layer = Tar::new().file("n", noise(4 << 20, seed)).layer(Compression::Gzip);
        pull(&store, &registry.add("fits", &seed.to_string(), &TestImage::new(&[layer]))).await.unwrap();
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
