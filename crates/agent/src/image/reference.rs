//! Image references, normalised as Docker does.
//!
//! The grammar is that of the `distribution/reference` package: `[host[:port]/]path[:tag][@digest]`, where a first
//! component is a host only when it has a `.` or a `:`, is `localhost`, or has an upper-case letter; without one the
//! host is `docker.io`, and a `docker.io` path of one component is in `library/`.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};

/// The host that a reference without one means.
pub(crate) const DEFAULT_HOST: &str = "docker.io";
/// The longest host and path together, in bytes (`NameTotalLengthMax` of distribution/reference).
const NAME_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_MAX: usize = 128;

/// A normalised image reference. Displays in full, as in `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// The repository part has an upper-case letter.
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
    /// The name is longer than 255 bytes.
    #[error("invalid reference format: repository name must not be more than {NAME_MAX} characters")]
    TooLong,
    /// A bare 64-digit hex text would be taken for an image id.
    #[error("invalid repository name: cannot specify 64-byte hexadecimal strings")]
    LooksLikeId,
    /// The digest after `@` cannot be used.
    #[error("invalid reference format: {0}")]
    Digest(DigestError),
}

impl Reference {
    /// The registry's host as written, with its port (`docker.io`, `localhost:5000`).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path within the registry (`library/nginx`).
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when the text had neither a tag nor a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest; where there is one it alone chooses the image, whatever the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What to ask the registry for: the digest, else the tag.
    pub(crate) fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        // Before any work on it: a reference comes from a tenant.
        if text.len() > NAME_MAX + TAG_MAX + 2 + 128 {
            return Err(ReferenceError::TooLong);
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::LooksLikeId);
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse().map_err(ReferenceError::Digest)?)),
            None => (text, None),
        };
        let (host, rest) = match named.split_once('/') {
            Some((first, rest)) if is_host_like(first) => (first, rest),
            _ => (DEFAULT_HOST, named),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let repository = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase);
        }
        if !is_host(host) || !path.split('/').all(is_path_component) || !tag.is_none_or(is_tag) {
            return Err(ReferenceError::Format);
        }
        if host.len() + 1 + repository.len() > NAME_MAX {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }
}

fn is_host_like(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    let port_ok =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    port_ok && name.is_none_or(|name| name.split('.').all(is_domain_component))
}

fn is_domain_component(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises_as_docker() {
        let at = format!("@sha256:{HEX}");
        for (text, canonical) in [
            ("nginx".to_owned(), "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27".into(), "docker.io/library/nginx:1.27".into()),
            ("me/app".into(), "docker.io/me/app:latest".into()),
            ("docker.io/nginx".into(), "docker.io/library/nginx:latest".into()),
            ("index.docker.io/nginx".into(), "docker.io/library/nginx:latest".into()),
            ("localhost/x".into(), "localhost/x:latest".into()),
            ("localhost:5000/x:tag".into(), "localhost:5000/x:tag".into()),
            ("localhost:5000".into(), "docker.io/library/localhost:5000".into()),
            ("[::1]:5000/a/b__c".into(), "[::1]:5000/a/b__c:latest".into()),
            ("127.0.0.1:80/a-b--c.d_e".into(), "127.0.0.1:80/a-b--c.d_e:latest".into()),
            ("Upper/app".into(), "Upper/app:latest".into()),
            (format!("nginx{at}"), format!("docker.io/library/nginx{at}")),
            (format!("ghcr.io/a/b:v1{at}"), format!("ghcr.io/a/b:v1{at}")),
            (
                "123456789012.dkr.ecr.us-east-1.amazonaws.com/app:1".into(),
                "123456789012.dkr.ecr.us-east-1.amazonaws.com/app:1".into(),
            ),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Reference>().as_ref(), Ok(&reference), "{canonical} is stable");
        }
        let both: Reference = format!("x:v1{at}").parse().unwrap();
        assert_eq!(both.target(), format!("sha256:{HEX}"), "the digest wins over the tag");
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let long = format!("a/{}", "b".repeat(260));
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ":tag",
            "a:",
            "a@",
            "a:b:c",
            "a b",
            "a\n",
            "../a",
            "a/../b",
            "a/./b",
            "-a",
            "a-",
            "_a",
            "a___b",
            "a..b",
            "a:-t",
            "a@sha256:12",
            "http://a.b/c",
            "a.b:99999/c",
            "a.b:x/c",
            "-a.b/c",
            "[::1/x",
            "[zz]:1/x",
            "a:\u{e9}",
            "ü",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was taken");
        }
        assert_eq!("Nginx".parse::<Reference>(), Err(ReferenceError::Uppercase));
        assert_eq!(HEX.parse::<Reference>(), Err(ReferenceError::LooksLikeId));
        assert_eq!(
            format!("a@sha512:{HEX}").parse::<Reference>(),
            Err(ReferenceError::Digest(DigestError::Algorithm))
        );
    }
}
