//! The names the registry takes from clients: repositories, tags, digests, upload ids.
//!
//! Everything that becomes part of a store key or of a file path is one of these types, so a name
//! that could leave its directory or collide with another key cannot be written down.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use model::{AccountId, Region};
use regex::Regex;
use serde::{Deserialize, Serialize};

/// The pattern of ECR's `RepositoryName` (ECR API reference, `CreateRepository`).
const REPOSITORY_PATTERN: &str =
    r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$";

/// The pattern of a tag (OCI distribution spec 1.1, "Pulling manifests").
const TAG_PATTERN: &str = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$";

static REPOSITORY_REGEX: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(REPOSITORY_PATTERN).expect("the pattern is a constant that the tests compile")
});
static TAG_REGEX: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(TAG_PATTERN).expect("the pattern is a constant that the tests compile"));

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error(
        "a repository name has 2 to 256 characters: lower-case letters and digits, with '.', '_', '__', '-' or '/' between them"
    )]
    Repository,
    /// Not a tag.
    #[error(
        "a tag has 1 to 128 characters: letters, digits, '_', '.' and '-', and starts with neither '.' nor '-'"
    )]
    Tag,
    /// Not a digest at all.
    #[error("a digest is written 'sha256:' followed by 64 lower-case hexadecimal digits")]
    Digest,
    /// A digest of an algorithm that this registry does not store.
    #[error("digest algorithm '{0}' is not supported: this registry stores sha256 only")]
    Algorithm(String),
    /// Not an upload id.
    #[error("an upload id is a UUID")]
    Upload,
}

/// A repository's name, such as `team/app`; 2 to 256 characters of ECR's pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if (2..=256).contains(&text.len()) && REPOSITORY_REGEX.is_match(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Repository)
        }
    }
}

/// An image's tag, such as `latest`; 1 to 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// The tag as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if TAG_REGEX.is_match(text) { Ok(Self(text.to_owned())) } else { Err(NameError::Tag) }
    }
}

/// The SHA-256 digest of some content, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(ring::digest::digest(&ring::digest::SHA256, bytes))
    }

    /// The digest that a SHA-256 computation ended in.
    pub(crate) fn finish(digest: ring::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (algorithm, encoded) = text.split_once(':').ok_or(NameError::Digest)?;
        if algorithm != "sha256" {
            let known = matches!(algorithm, "sha512" | "sha384" | "blake3");
            return Err(if known { NameError::Algorithm(algorithm.to_owned()) } else { NameError::Digest });
        }
        // OCI image spec, "Registered algorithms": upper-case digits are not a valid sha256 digest.
        if encoded.len() != 64 || encoded.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NameError::Digest);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(encoded, &mut bytes).map_err(|_| NameError::Digest)?;
        Ok(Self(bytes))
    }
}

/// What names a manifest in a path: a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// By tag.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        // A tag has no colon, a digest always has one.
        if text.contains(':') {
            text.parse().map(Reference::Digest)
        } else {
            text.parse().map(Reference::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag.as_str()),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

/// The id of an upload session: a version 4 UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadId(uuid::Uuid);

impl UploadId {
    /// A new random id.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for UploadId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        uuid::Uuid::try_parse(text).map(Self).map_err(|_| NameError::Upload)
    }
}

macro_rules! string_conversions {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.to_string()
            }
        }
    )*};
}
string_conversions!(RepositoryName, Tag, Digest);

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One private registry in ECR's sense: the repositories of one account in one region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Namespace {
    /// The account: ECR's registry id.
    pub account: AccountId,
    /// The region.
    pub region: Region,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_ecrs_pattern() {
        for good in ["app", "a1", "team/app", "a.b-c__d/e--f", "blobs/uploads", "v2/v2"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        let long = "a".repeat(257);
        for bad in [
            "", "a", "App", "../etc", "a/../b", "a//b", "/a", "a/", "a/.", "a/./b", "a b", "a\nb", "ab\n",
            "a..b", "a___b", "-ab", "ab-", "a@b", "a:b", "a%2fb", "é1", "a\0b", &long,
        ] {
            assert_eq!(bad.parse::<RepositoryName>(), Err(NameError::Repository), "{bad:?}");
        }
    }

    #[test]
    fn tags_and_digests_are_checked() {
        let hex = "a".repeat(64);
        assert!("latest".parse::<Tag>().is_ok());
        assert!("_v1.2-rc_3".parse::<Tag>().is_ok());
        for bad in ["", ".x", "-x", "a/b", "a:b", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
        assert_eq!(
            format!("sha512:{hex}{hex}").parse::<Digest>(),
            Err(NameError::Algorithm("sha512".to_owned()))
        );
        for bad in [
            "sha256:".to_owned(),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:../{}", &hex[3..]),
            format!("md5:{hex}"),
            hex.clone(),
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(NameError::Digest), "{bad}");
        }
    }
}
