//! What the registry keeps in the store, and under which keys.
//!
//! As everywhere, the kind comes first, then account and region (`S` below):
//!
//! | key | value |
//! |---|---|
//! | `ecr/repository/S/<repository>` | [`RepositoryRecord`] |
//! | `ecr/image/S/<repository>@<digest>` | [`ImageRecord`] |
//! | `ecr/tag/S/<repository>:<tag>` | [`TagRecord`] |
//! | `ecr/referrer/S/<repository>@<subject>@<digest>` | `null`: that image's `subject` is this |
//! | `ecr/lifecycle-policy/S/<repository>` | [`LifecyclePolicyRecord`] |
//! | `ecr/lifecycle-preview/S/<repository>` | [`LifecyclePreviewRecord`] |
//! | `ecr/repository-policy/S/<repository>` | [`RepositoryPolicyRecord`] |
//! | `registry/blob/<digest>/S/<repository>` | [`BlobLink`]; digest first, as files are shared by all |
//! | `registry/token-key` | the key that signs tokens |
//!
//! A repository's name may contain `/`, and one name may begin with another; `@` and `:` are in
//! neither names nor tags, so a prefix that ends in one of them covers one repository.

use std::collections::{BTreeMap, BTreeSet};

use model::{AccountId, Region};
use serde::{Deserialize, Serialize};

use super::name::{Digest, Namespace, RepositoryName, Tag};

/// Milliseconds since 1970, UTC.
pub type Millis = i64;

/// A repository and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// Its name.
    pub name: RepositoryName,
    /// When it was made.
    pub created_at: Millis,
    /// Whether a tag can be moved to another image.
    pub tag_mutability: TagMutability,
    /// Patterns (with `*`) of the tags for which the opposite of `tag_mutability` holds.
    pub mutability_exclusions: Vec<String>,
    /// `imageScanningConfiguration.scanOnPush`, kept and shown.
    pub scan_on_push: bool,
    /// `encryptionConfiguration`, kept and shown.
    pub encryption_type: String,
    /// The KMS key of the encryption.
    pub kms_key: Option<String>,
    /// Resource tags.
    pub resource_tags: BTreeMap<String, String>,
    /// False only if there is no image. The push that makes it true changes this record, which is what
    /// a deletion of an empty repository is guarded by.
    pub may_hold_images: bool,
}

/// `imageTagMutability` without its exclusions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagMutability {
    /// A tag can be moved.
    Mutable,
    /// A tag stays with its image.
    Immutable,
}

impl RepositoryRecord {
    /// A repository with ECR's default settings.
    pub fn new(name: RepositoryName, now: Millis) -> Self {
        Self {
            name,
            created_at: now,
            tag_mutability: TagMutability::Mutable,
            mutability_exclusions: Vec::new(),
            scan_on_push: false,
            encryption_type: "AES256".to_owned(),
            kms_key: None,
            resource_tags: BTreeMap::new(),
            may_hold_images: false,
        }
    }

    /// Whether `tag` has to stay with its image.
    pub fn is_immutable(&self, tag: &Tag) -> bool {
        let excluded = self
            .mutability_exclusions
            .iter()
            .any(|pattern| super::lifecycle::wildcard_match(pattern, tag.as_str()));
        (self.tag_mutability == TagMutability::Immutable) != excluded
    }
}

/// A manifest that was pushed to a repository. Its bytes are the blob of its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// The kind of artifact.
    pub artifact_type: Option<String>,
    /// The manifest's length in bytes.
    pub manifest_bytes: u64,
    /// The lengths of config and layers together; of a list, that of its largest image.
    pub image_bytes: u64,
    /// When it first arrived in the repository.
    pub pushed_at: Millis,
    /// When it was last pulled, to the hour.
    pub last_pulled_at: Option<Millis>,
    /// The tags that name it; the `tag/` keys say the same the other way round.
    pub tags: BTreeSet<Tag>,
    /// The manifest lists in the repository that refer to it.
    pub parents: BTreeSet<Digest>,
    /// The images that it, a manifest list, refers to.
    pub children: Vec<Digest>,
    /// The config and layers that it refers to.
    pub blobs: Vec<Digest>,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
}

/// Which image a tag names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The image.
    pub digest: Digest,
}

/// That a repository has a blob. While there is one link, the blob's file is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobLink {
    /// The blob's length.
    pub bytes: u64,
    /// The media type that a manifest gave it.
    pub media_type: Option<String>,
    /// Whether it is a manifest: those are not served as blobs.
    pub manifest: bool,
    /// When it was last pushed, mounted, asked for or referred to by a pusher.
    pub touched_at: Millis,
}

/// A repository's lifecycle policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecyclePolicyRecord {
    /// The document as given.
    pub text: String,
    /// When it was last applied.
    pub last_evaluated_at: Option<Millis>,
}

/// The outcome of a lifecycle policy's preview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifecyclePreviewRecord {
    /// The document that was tried.
    pub text: String,
    /// When.
    pub started_at: Millis,
}

/// A repository's resource policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryPolicyRecord {
    /// The document as given.
    pub text: String,
}

/// The key of the secret that signs tokens.
pub const TOKEN_KEY: &str = "registry/token-key";

/// All blob links of all accounts.
pub const BLOB_LINKS: &str = "registry/blob/";

/// All repositories of all accounts with what is in them.
pub const ALL: &str = "ecr/";

/// All images of all accounts.
pub const IMAGES: &str = "ecr/image/";

/// All lifecycle policies of all accounts.
pub const LIFECYCLE_POLICIES: &str = "ecr/lifecycle-policy/";

impl Namespace {
    fn path(&self) -> String {
        format!("{}/{}", self.account, self.region)
    }

    /// Prefix of the repositories.
    pub fn repositories(&self) -> String {
        format!("ecr/repository/{}/", self.path())
    }

    /// A repository.
    pub fn repository(&self, name: &RepositoryName) -> String {
        format!("ecr/repository/{}/{name}", self.path())
    }

    /// Prefix of a repository's images.
    pub fn images(&self, name: &RepositoryName) -> String {
        format!("{IMAGES}{}/{name}@", self.path())
    }

    /// An image.
    pub fn image(&self, name: &RepositoryName, digest: &Digest) -> String {
        format!("{}{digest}", self.images(name))
    }

    /// Prefix of a repository's tags.
    pub fn tags(&self, name: &RepositoryName) -> String {
        format!("ecr/tag/{}/{name}:", self.path())
    }

    /// A tag.
    pub fn tag(&self, name: &RepositoryName, tag: &Tag) -> String {
        format!("{}{tag}", self.tags(name))
    }

    /// Prefix of all referrers in a repository.
    pub fn all_referrers(&self, name: &RepositoryName) -> String {
        format!("ecr/referrer/{}/{name}@", self.path())
    }

    /// Prefix of the referrers to one subject.
    pub fn referrers(&self, name: &RepositoryName, subject: &Digest) -> String {
        format!("{}{subject}@", self.all_referrers(name))
    }

    /// A referrer.
    pub fn referrer(&self, name: &RepositoryName, subject: &Digest, digest: &Digest) -> String {
        format!("{}{digest}", self.referrers(name, subject))
    }

    /// A repository's lifecycle policy.
    pub fn lifecycle_policy(&self, name: &RepositoryName) -> String {
        format!("{LIFECYCLE_POLICIES}{}/{name}", self.path())
    }

    /// A repository's lifecycle policy preview.
    pub fn lifecycle_preview(&self, name: &RepositoryName) -> String {
        format!("ecr/lifecycle-preview/{}/{name}", self.path())
    }

    /// A repository's resource policy.
    pub fn repository_policy(&self, name: &RepositoryName) -> String {
        format!("ecr/repository-policy/{}/{name}", self.path())
    }

    /// A blob in a repository.
    pub fn blob_link(&self, name: &RepositoryName, digest: &Digest) -> String {
        format!("{}{name}", self.blob_links(digest))
    }

    /// Prefix of a blob's links in this namespace.
    pub fn blob_links(&self, digest: &Digest) -> String {
        format!("{}{}/", blob_links(digest), self.path())
    }

    /// The namespace and what follows it in a key that begins with `prefix`.
    fn split_key<'a>(prefix: &str, key: &'a str) -> Option<(Self, &'a str)> {
        let mut parts = key.strip_prefix(prefix)?.splitn(3, '/');
        let account = AccountId::parse(parts.next()?).ok()?;
        let region = Region::parse(parts.next()?).ok()?;
        Some((Self { account, region }, parts.next()?))
    }
}

/// Prefix of a blob's links everywhere.
pub fn blob_links(digest: &Digest) -> String {
    format!("{BLOB_LINKS}{digest}/")
}

/// The digest, namespace and repository of a blob link's key.
pub fn parse_blob_link(key: &str) -> Option<(Digest, Namespace, RepositoryName)> {
    let (digest, _) = key.strip_prefix(BLOB_LINKS)?.split_once('/')?;
    let digest = digest.parse().ok()?;
    let (namespace, name) = Namespace::split_key(&blob_links(&digest), key)?;
    Some((digest, namespace, name.parse().ok()?))
}

/// The namespace and repository of an image's key.
pub fn parse_image(key: &str) -> Option<(Namespace, RepositoryName)> {
    let (namespace, rest) = Namespace::split_key(IMAGES, key)?;
    let (name, _) = rest.split_once('@')?;
    Some((namespace, name.parse().ok()?))
}

/// The namespace and repository of a lifecycle policy's key.
pub fn parse_lifecycle_policy(key: &str) -> Option<(Namespace, RepositoryName)> {
    let (namespace, name) = Namespace::split_key(LIFECYCLE_POLICIES, key)?;
    Some((namespace, name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_repositorys_keys_are_no_prefix_of_anothers() {
        let namespace = Namespace {
            account: AccountId::parse("123456789012").unwrap(),
            region: Region::parse("eu-west-1").unwrap(),
        };
        let (app, nested): (RepositoryName, RepositoryName) =
            ("app".parse().unwrap(), "app/web".parse().unwrap());
        let digest = Digest::of(b"x");
        assert!(!namespace.image(&nested, &digest).starts_with(&namespace.images(&app)));
        let link = namespace.blob_link(&nested, &digest);
        assert_eq!(parse_blob_link(&link), Some((digest, namespace.clone(), nested.clone())));
        let policy = namespace.lifecycle_policy(&nested);
        assert_eq!(parse_lifecycle_policy(&policy), Some((namespace.clone(), nested.clone())));
        let image = namespace.image(&nested, &digest);
        assert_eq!(parse_image(&image), Some((namespace, nested)));
    }

    #[test]
    fn exclusions_turn_the_mutability_round() {
        let mut repository = RepositoryRecord::new("app".parse().unwrap(), 0);
        repository.mutability_exclusions = vec!["dev-*".to_owned()];
        let (dev, v1): (Tag, Tag) = ("dev-1".parse().unwrap(), "v1".parse().unwrap());
        assert!(repository.is_immutable(&dev) && !repository.is_immutable(&v1));
        repository.tag_mutability = TagMutability::Immutable;
        assert!(!repository.is_immutable(&dev) && repository.is_immutable(&v1));
    }
}
