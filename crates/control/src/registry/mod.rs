//! The container registry: the OCI distribution API under `/v2/`, and what the ECR API needs of it.
//!
//! - [`name`]: what clients may call things; [`manifest`]: what they push.
//! - [`blob`], [`upload`]: content, in files. [`record`], `catalog`: everything else, in the store.
//! - [`token`]: who may do what. [`lifecycle`], `sweep`: what goes away by itself.
//! - `http`: the distribution API; the ECR API is in [`crate::api::ecr`].
//!
//! One process at a time works on a registry's directory: the collector keeps itself and pushes apart
//! by a lock in memory.

pub mod blob;
mod catalog;
pub mod error;
mod http;
pub mod lifecycle;
pub mod manifest;
pub mod name;
mod push;
pub mod record;
mod sweep;
pub mod token;
pub mod upload;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::SecureRandom as _;
use store::{Store, Txn};
use tokio::sync::RwLock;

pub use catalog::{Pushed, Untagged};
pub use error::RegistryError;
pub use name::{Digest, Namespace, Reference, RepositoryName, Tag};
pub use sweep::Swept;
pub use token::{Access, Claims, Token};

use crate::clock::Clock;
use blob::BlobFiles;
use record::{Millis, TOKEN_KEY};
use token::TokenKey;
use upload::{UploadLimits, Uploads};

/// How a registry is set up.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Host and port that clients push to and that images are named by, such as `localhost:4566`.
    pub host: String,
    /// The limits on uploads: 50 GiB a blob, 256 at once an account, for a day.
    pub uploads: UploadLimits,
    /// How long a blob that no image refers to is kept after it was last pushed or asked for by a
    /// pusher. Longer than any push takes between two requests.
    pub collect_after: Duration,
    /// Whether a push makes its repository.
    pub create_on_push: bool,
    /// The time.
    pub clock: Clock,
}

impl RegistryOptions {
    /// The usual settings for a registry that clients reach as `host`.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            uploads: UploadLimits {
                max_blob_bytes: 50 << 30,
                max_per_account: 256,
                lifetime: Duration::from_secs(24 * 3600),
            },
            collect_after: Duration::from_secs(2 * 3600),
            create_on_push: true,
            clock: Clock::system(),
        }
    }
}

/// Why a registry could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its directory cannot be used.
    #[error("the registry's directory {} cannot be used", path.display())]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store failed.
    #[error("the registry's token key cannot be read or written")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is stored as the token key is not one.
    #[error("the registry's token key is damaged")]
    TokenKey,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// How long a token of `GetAuthorizationToken` is good (ECR user guide, "Private registry
/// authentication").
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// How long the URL of `GetDownloadUrlForLayer` is good.
pub const DOWNLOAD_LIFETIME: Duration = Duration::from_secs(3600);

/// The registry. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    options: RegistryOptions,
    token_key: TokenKey,
    blobs: BlobFiles,
    uploads: Uploads,
    /// Held for reading from when a blob's file is put or found in place until it is linked; for
    /// writing while the collector removes a file that no link names.
    collector: RwLock<()>,
}

impl Registry {
    /// Opens the registry whose content is in `dir` (made if missing) and whose records are in
    /// `store`. Uploads that a crash or restart interrupted go on.
    pub async fn open(dir: &Path, store: Store, options: RegistryOptions) -> Result<Self, OpenError> {
        let token_key = load_token_key(&store).await?;
        let limits = options.uploads;
        let path = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            make_private_directory(&path)?;
            Ok((BlobFiles::open(&path)?, Uploads::open(&path, limits)?))
        })
        .await
        .map_err(std::io::Error::other)
        .and_then(|opened| opened);
        let (blobs, uploads) =
            opened.map_err(|source| OpenError::Directory { path: dir.to_owned(), source })?;
        let inner = Inner { store, options, token_key, blobs, uploads, collector: RwLock::new(()) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Host and port that images are named by.
    pub fn host(&self) -> &str {
        &self.inner.options.host
    }

    /// What clients call the repository: `repositoryUri`.
    pub fn repository_uri(&self, name: &RepositoryName) -> String {
        format!("{}/{name}", self.host())
    }

    /// The URL of the registry: `proxyEndpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.host())
    }

    /// The repository and reference that an image name such as `localhost:4566/team/app:v1` means, if
    /// it names an image of this registry: without tag and digest it is `latest`, with both the digest
    /// counts. The host's names for itself are taken for each other.
    pub fn resolve(&self, image: &str) -> Option<(RepositoryName, Reference)> {
        let (host, rest) = image.split_once('/')?;
        if !same_host(host, self.host()) {
            return None;
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        let (name, tag) = match name.split_once(':') {
            Some((name, tag)) => (name, tag),
            None => (name, "latest"),
        };
        let tag: Tag = tag.parse().ok()?;
        let reference = match digest {
            Some(digest) => Reference::Digest(digest.parse().ok()?),
            None => Reference::Tag(tag),
        };
        Some((name.parse().ok()?, reference))
    }

    /// A token that can push, pull and delete in all of the namespace, as `GetAuthorizationToken`
    /// makes it, and when it expires.
    pub fn mint_token(&self, namespace: &Namespace, principal: &str) -> (Token, Millis) {
        self.mint(namespace, principal, Access::Registry, TOKEN_LIFETIME)
    }

    /// A token that can only pull from one repository for `ttl`: what an agent is given for a task.
    pub fn mint_pull_token(
        &self,
        namespace: &Namespace,
        repository: &RepositoryName,
        ttl: Duration,
    ) -> Token {
        let access = Access::Pull { repository: repository.clone() };
        self.mint(namespace, "coracle:task", access, ttl).0
    }

    fn mint(&self, namespace: &Namespace, principal: &str, access: Access, ttl: Duration) -> (Token, Millis) {
        let issued_at = self.now() / 1000;
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let expires_at = issued_at.saturating_add(ttl);
        let token = self.inner.token_key.sign(&Claims {
            namespace: namespace.clone(),
            principal: principal.to_owned(),
            access,
            issued_at,
            expires_at,
        });
        (token, expires_at.saturating_mul(1000))
    }

    /// A URL at which anybody who has it can get the blob for [`DOWNLOAD_LIFETIME`].
    pub fn download_url(
        &self,
        namespace: &Namespace,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> String {
        let access = Access::Blob { repository: repository.clone(), digest: *digest };
        let (token, _) = self.mint(namespace, "coracle:download", access, DOWNLOAD_LIFETIME);
        format!(
            "{}/v2/{repository}/blobs/{digest}?{}={}",
            self.endpoint(),
            http::TOKEN_PARAMETER,
            token.secret()
        )
    }

    fn store(&self) -> &Store {
        &self.inner.store
    }

    fn options(&self) -> &RegistryOptions {
        &self.inner.options
    }

    pub(crate) fn now(&self) -> Millis {
        self.inner.options.clock.now().millis()
    }
}

/// Whether two of `host:port` are the same, if only by two names of the loopback.
fn same_host(one: &str, other: &str) -> bool {
    let split = |host| match str::rsplit_once(host, ':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ""),
    };
    let ((one, one_port), (other, other_port)) = (split(one), split(other));
    let loopback = |name: &str| matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    one_port == other_port && (one == other || (loopback(one) && loopback(other)))
}

/// The key that signs tokens, made at the first start.
async fn load_token_key(store: &Store) -> Result<TokenKey, OpenError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| OpenError::Store(error);
    let mut fresh = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut fresh).map_err(|_| OpenError::Random)?;
    let txn = Txn::new().expect_absent(TOKEN_KEY).put_json(TOKEN_KEY, &hex::encode(fresh));
    match store.commit(txn).await {
        Ok(_) => return Ok(TokenKey::new(&fresh)),
        Err(store::CommitError::Conflict { .. }) => {}
        Err(error) => return Err(failed(Box::new(error))),
    }
    let stored = store
        .get_json::<String>(TOKEN_KEY)
        .await
        .map_err(|error| failed(Box::new(error)))?
        .ok_or(OpenError::TokenKey)?;
    let mut key = [0; 32];
    hex::decode_to_slice(stored.value, &mut key).map_err(|_| OpenError::TokenKey)?;
    Ok(TokenKey::new(&key))
}

/// Makes the directory, for its owner only, if it is missing.
fn make_private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn image_names_are_resolved() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_embedded(&directory.path().join("state.db")).unwrap();
        let options = RegistryOptions::new("localhost:4566");
        let registry = Registry::open(directory.path(), store, options).await.unwrap();
        let resolve = |image: &str| {
            registry.resolve(image).map(|(name, reference)| (name.to_string(), reference.to_string()))
        };
        let found = |name: &str, reference: &str| Some((name.to_owned(), reference.to_owned()));
        let digest = Digest::of(b"x").to_string();
        assert_eq!(resolve("localhost:4566/team/app:v1"), found("team/app", "v1"));
        assert_eq!(resolve("127.0.0.1:4566/app"), found("app", "latest"));
        assert_eq!(resolve("[::1]:4566/app:v1"), found("app", "v1"));
        assert_eq!(resolve(&format!("localhost:4566/app:v1@{digest}")), found("app", &digest));
        for other in [
            "localhost:4567/app",
            "localhost/app",
            "app:v1",
            "docker.io/library/app",
            "localhost:4566.example/app",
            "localhost:4566/../app",
            "localhost:4566/app:",
            "localhost:4566/app@sha256:00",
        ] {
            assert_eq!(resolve(other), None, "{other}");
        }
    }
}
