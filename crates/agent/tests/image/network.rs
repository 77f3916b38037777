//! Registries as they are: tokens, redirects, cut connections, refusals; and pulls that happen at the same time.

use std::sync::atomic::Ordering;

use agent::image::{Auth, ImageOptions, PullErrorKind, PullRequest, RegistryEndpoint};
use model::Secret;

use crate::support::builder::{Compression, Tar, TestImage, noise};
use crate::support::docker_registry::DockerRegistry;
use crate::support::faulty::Faulty;
use crate::support::{assert_clean, names, open, options, pull, scratch, until};

fn image(seed: u64, length: usize) -> TestImage {
    TestImage::new(&[Tar::new().file("data", noise(length, seed)).layer(Compression::Gzip)])
}

fn login(reference: &str, username: &str, password: &str) -> PullRequest {
    let auth = Auth::Basic { username: username.into(), password: Secret::new(password) };
    PullRequest { auth, ..PullRequest::new(reference) }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_with_credentials_and_kept() {
    let (registry, realm) = (Faulty::start().await, Faulty::start().await);
    let root = scratch();
    let store = open(root.path(), options());
    *realm.behaviour().token.lock().unwrap() = r#"{"token":"t1","expires_in":300}"#.into();
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="the service",scope="repository:app:pull""#,
        realm.host
    );
    *registry.behaviour().required.lock().unwrap() = Some(("Bearer t1".into(), challenge));
    let reference = registry.add("app", "1", &image(1, 1000));
    store.pull(login(&reference, "me", "pw"), |_| {}).await.unwrap();
    store.pull(login(&reference, "me", "pw"), |_| {}).await.unwrap();
    let asked = realm.requests("/token");
    assert_eq!(asked.len(), 1, "one token for manifest, config, layer and the next pull");
    assert_eq!(asked[0].0, "/token?service=the+service&scope=repository%3Aapp%3Apull");
    assert_eq!(asked[0].1["authorization"], "Basic bWU6cHc=");
    // Others get none of it.
    store.pull(PullRequest::new(&reference), |_| {}).await.unwrap();
    let asked = realm.requests("/token");
    assert!(asked.len() == 2 && !asked[1].1.contains_key("authorization"));
    // A token that the registry no longer takes is replaced.
    *realm.behaviour().token.lock().unwrap() = r#"{"access_token":"t2"}"#.into();
    let challenge = format!(r#"Bearer realm="http://{}/token""#, realm.host);
    *registry.behaviour().required.lock().unwrap() = Some(("Bearer t2".into(), challenge));
    store.pull(login(&reference, "me", "pw"), |_| {}).await.unwrap();
    assert_eq!(realm.requests("/token")[2].0, "/token?scope=repository%3Aapp%3Apull");
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_work_and_wrong_ones_are_refused_even_when_cached() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let required =
        ("Basic QVdTOnNlY3JldA==".to_owned(), r#"Basic realm="r",service="ecr.amazonaws.com""#.to_owned());
    *registry.behaviour().required.lock().unwrap() = Some(required);
    let reference = registry.add("app", "1", &image(1, 1000));
    store.pull(login(&reference, "AWS", "secret"), |_| {}).await.unwrap();
    for request in [login(&reference, "AWS", "wrong"), PullRequest::new(&reference)] {
        let error = store.pull(request, |_| {}).await.unwrap_err();
        assert!(matches!(error.kind(), PullErrorKind::Unauthorized(_)), "{error}");
    }
    // With its body: a HEAD has none.
    let error = store.pull(PullRequest::new(format!("{}/app:2", registry.host)), |_| {}).await.unwrap_err();
    assert_eq!(
        error.reason(),
        format!(
            "pull image manifest has been retried 1 time(s): failed to resolve ref {}/app:2: pull access denied, \
             repository does not exist or may require authorization: server message: unauthorized: authentication required",
            registry.host
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_credentials() {
    // Another address is another host.
    let (registry, cdn) = (Faulty::start().await, Faulty::start_at("127.0.0.2:0").await);
    let root = scratch();
    let store = open(root.path(), options());
    let challenge = r#"Basic realm="r""#.to_owned();
    *registry.behaviour().required.lock().unwrap() = Some(("Basic bWU6cHc=".into(), challenge));
    *registry.behaviour().redirect_blobs.lock().unwrap() = Some(format!("http://{}", cdn.host));
    let image = image(1, 100_000);
    let reference = registry.add("app", "1", &image);
    image.blobs.iter().for_each(|blob| cdn.add_blob(blob));
    // It is cut as well, so that the redirect is followed again with a range.
    cdn.behaviour().cut_after.store(30_000, Ordering::SeqCst);
    cdn.behaviour().cuts.store(1, Ordering::SeqCst);
    store.pull(login(&reference, "me", "pw"), |_| {}).await.unwrap();
    let asked = cdn.requests("/cdn/blobs/");
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|(_, headers)| !headers.contains_key("authorization")), "{asked:?}");
    assert_eq!(asked[2].1["range"], "bytes=30000-");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_realms_do_not_lead_into_the_host() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let reference = registry.add("app", "1", &image(1, 1000));
    for target in ["http://169.254.169.254", "http://[fe80::1]", "ftp://127.0.0.1", "http://registry.example"]
    {
        *registry.behaviour().redirect_blobs.lock().unwrap() = Some(target.into());
        let error = pull(&store, &reference).await.unwrap_err();
        assert!(error.reason().contains("refused to go to"), "{target}: {error}");
        let challenge = format!(r#"Bearer realm="{target}/token""#);
        *registry.behaviour().required.lock().unwrap() = Some(("Bearer x".into(), challenge));
        let error = store.pull(login(&reference, "me", "pw"), |_| {}).await.unwrap_err();
        assert!(error.reason().contains("refused to go to"), "{target}: {error}");
        *registry.behaviour().required.lock().unwrap() = None;
    }
    let error = pull(&store, "169.254.169.254/latest/meta-data").await.unwrap_err();
    assert!(error.reason().contains("refused to go to"), "{error}");
    // In circles.
    *registry.behaviour().redirect_blobs.lock().unwrap() = Some(format!("http://{}", registry.host));
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(error.reason().contains("redirects more than"), "{error}");
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_downloads_resume_where_they_were_cut() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let image = image(1, 1_000_000);
    let digest = agent::image::Digest::of(&image.blobs[1]).to_string();
    let reference = registry.add("app", "1", &image);
    registry.behaviour().cut_after.store(300_000, Ordering::SeqCst);
    registry.behaviour().cuts.store(3, Ordering::SeqCst);
    pull(&store, &reference).await.unwrap();
    let asked = registry.requests(&digest);
    let ranges: Vec<_> =
        asked.iter().map(|(_, h)| h.get("range").map(|v| v.to_str().unwrap().to_owned())).collect();
    let range = |start: u32| Some(format!("bytes={start}-"));
    assert_eq!(ranges, [None, range(300_000), range(600_000), range(900_000)]);

    // From a registry that begins anew each time, too.
    store.remove("", &reference).await.unwrap();
    registry.behaviour().ignore_range.store(true, Ordering::SeqCst);
    registry.behaviour().cuts.store(2, Ordering::SeqCst);
    pull(&store, &reference).await.unwrap();

    // Without end it is given up.
    store.remove("", &reference).await.unwrap();
    registry.behaviour().cuts.store(1000, Ordering::SeqCst);
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::Unreachable(_)), "{error}");
    assert!(error.reason().starts_with("ref pull has been retried 5 time(s): failed to copy: "), "{error}");
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_registries_are_asked_again_and_odd_ones_otherwise() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let reference = registry.add("app", "1", &image(1, 1000));
    registry.behaviour().unavailable.store(2, Ordering::SeqCst);
    pull(&store, &reference).await.unwrap();
    registry.behaviour().no_head.store(true, Ordering::SeqCst);
    pull(&store, &reference).await.unwrap();
    assert!(registry.count("GET", "/manifests/") >= 2);
    // Unavailable throughout: the image at hand is used, and the next pull does not even ask.
    registry.behaviour().no_head.store(false, Ordering::SeqCst);
    registry.behaviour().unavailable.store(1000, Ordering::SeqCst);
    registry.clear_log();
    pull(&store, &reference).await.unwrap();
    pull(&store, &reference).await.unwrap();
    assert_eq!(registry.count("HEAD", "/manifests/"), 1);
    let error = pull(&store, &format!("{}/app:other", registry.host)).await.unwrap_err();
    assert!(
        error.reason().contains("503 Service Unavailable") && error.reason().contains("3 time(s)"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_the_registry_lost_is_said() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let image = image(1, 1000);
    let reference = registry.add("app", "1", &image);
    let digest = agent::image::Digest::of(&image.blobs[1]).to_string();
    registry.remove_blob(&digest);
    let error = pull(&store, &reference).await.unwrap_err();
    assert_eq!(
        error.reason(),
        format!("ref pull has been retried 1 time(s): failed to copy: layer {digest}: not found")
    );
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_says_where_a_host_really_lives() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let (one, two) = (image(1, 10), image(2, 10));
    registry.add("111/app", "1", &one);
    registry.add("222/app", "1", &two);
    let request = |prefix: &str| PullRequest {
        endpoint: Some(RegistryEndpoint {
            base_url: format!("http://{}", registry.host),
            repository_prefix: prefix.into(),
        }),
        ..PullRequest::new("123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:1")
    };
    assert_eq!(store.pull(request("111"), |_| {}).await.unwrap().manifest_digest, one.digest());
    assert_eq!(store.pull(request("222"), |_| {}).await.unwrap().manifest_digest, two.digest());
    assert_eq!(store.list().len(), 2, "one reference, two places");
    // It is the host's own, and gets credentials at once: no round trip for a challenge.
    registry.clear_log();
    let required = ("Basic bWU6cHc=".to_owned(), r#"Basic realm="r""#.to_owned());
    *registry.behaviour().required.lock().unwrap() = Some(required);
    let auth = Auth::Basic { username: "me".into(), password: Secret::new("pw") };
    store.pull(PullRequest { auth, ..request("111") }, |_| {}).await.unwrap();
    assert_eq!(registry.requests("/v2/").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_share_a_download() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let shared = Tar::new().file("shared", noise(2_000_000, 1)).layer(Compression::Gzip);
    let digest = shared.digest().to_string();
    let references: Vec<String> = (0..8)
        .map(|n| {
            let own = Tar::new().file("own", noise(1000, n)).layer(Compression::Gzip);
            registry.add("app", &n.to_string(), &TestImage::new(&[shared.clone(), own]))
        })
        .collect();
    registry.behaviour().hold_blobs.store(true, Ordering::SeqCst);
    let pulls: Vec<_> = references
        .iter()
        .map(|reference| {
            let (store, reference) = (store.clone(), reference.clone());
            tokio::spawn(async move { pull(&store, &reference).await })
        })
        .collect();
    // Each has its own layer on the way, so each has joined the shared one.
    until("all layers are asked for", || registry.count("GET", "/blobs/") == 8 + 1 + 8).await;
    // One who leaves does not take the others' download along.
    pulls[0].abort();
    registry.release_blobs();
    for (index, task) in pulls.into_iter().enumerate() {
        match task.await {
            Ok(image) => assert_eq!(image.unwrap().layers.len(), 2),
            Err(error) => assert!(index == 0 && error.is_cancelled()),
        }
    }
    assert_eq!(registry.count("GET", &digest), 1);
    assert_clean(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    let reference = registry.add("app", "1", &image(1, 500_000));
    registry.behaviour().hold_blobs.store(true, Ordering::SeqCst);
    let task = tokio::spawn({
        let (store, reference) = (store.clone(), reference.clone());
        async move { pull(&store, &reference).await.map(|_| ()) }
    });
    until("the layer is asked for", || registry.count("GET", "/blobs/") == 2).await;
    assert_eq!(names(root.path(), "tmp").len(), 1);
    task.abort();
    let _ = task.await;
    assert_clean(root.path()).await;
    registry.release_blobs();
    pull(&store, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_over_tls_need_a_certificate_that_is_trusted() {
    let (registry, certificate) = DockerRegistry::start_tls();
    let root = scratch();
    let request = || PullRequest {
        // Loopback hosts are asked over plain HTTP otherwise.
        endpoint: Some(RegistryEndpoint {
            base_url: format!("https://{}", registry.host),
            repository_prefix: String::new(),
        }),
        ..PullRequest::new("registry.example/app")
    };
    let store = open(root.path(), options());
    let error = store.pull(request(), |_| {}).await.unwrap_err();
    assert!(matches!(error.kind(), PullErrorKind::Unreachable(_)), "{error}");
    assert!(error.reason().contains("certificate"), "{error}");
    drop(store);
    let store = open(root.path(), ImageOptions { ca_certificates: vec![certificate], ..options() });
    let error = store.pull(request(), |_| {}).await.unwrap_err();
    assert!(
        matches!(error.kind(), PullErrorKind::NotFound(_)),
        "the registry is empty, but it was asked: {error}"
    );
    // What an image from there is like does not depend on TLS; that it does not arrive over plain HTTP does.
    let plain = pull(&store, &format!("{}/app", registry.host)).await.unwrap_err();
    assert!(matches!(plain.kind(), PullErrorKind::Unsupported(_)), "{plain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_limit_is_said_in_the_registrys_words() {
    let registry = Faulty::start().await;
    let root = scratch();
    let store = open(root.path(), options());
    registry.behaviour().throttle.store(true, Ordering::SeqCst);
    let reference = registry.add("app", "1", &image(1, 1000));
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(
        error.reason().ends_with(
            "/v2/app/manifests/1: 429 Too Many Requests - Server message: toomanyrequests: You have reached your \
             pull rate limit."
        ),
        "{error}"
    );
}
