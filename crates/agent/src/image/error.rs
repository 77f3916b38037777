//! Why a pull failed, in the words that Fargate users know.
//!
//! Fargate reports `CannotPullContainerError: <tail>`, where the tail is containerd's text after what was retried and
//! how often. The forms below follow the ECS developer guide's "CannotPullContainer task errors" and stopped reasons
//! that users publish, such as `pull image manifest has been retried 1 time(s): failed to resolve ref
//! docker.io/library/x:latest: docker.io/library/x:latest: not found`.

use std::fmt;

use super::digest::Digest;

/// A failed pull. Displays as the tail of `CannotPullContainerError: …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullError {
    reference: String,
    stage: Stage,
    attempts: u32,
    kind: PullErrorKind,
}

/// How far the pull had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing was asked of a registry yet.
    Reference,
    /// Finding the image's manifest and config.
    Manifest,
    /// Fetching and unpacking a layer, named by its compressed digest.
    Layer(String),
    /// Fetching a blob that is no layer.
    Blob,
    /// Recording the image in the local cache.
    Store,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullErrorKind {
    /// The text is no image reference.
    #[error("{0}")]
    InvalidReference(String),
    /// The registry does not have the image, or one of its blobs.
    #[error("{0}: not found")]
    NotFound(String),
    /// The registry wants other credentials, or refuses these. Holds the server's message, if it gave one.
    #[error(
        "pull access denied, repository does not exist or may require authorization: server message: {0}"
    )]
    Unauthorized(String),
    /// The registry did not answer, or answered with a server error, in all attempts.
    #[error("{0}")]
    Unreachable(String),
    /// Content is not what its digest says.
    #[error("{what}: expected digest {expected}, got {actual}")]
    DigestMismatch { what: String, expected: Digest, actual: Digest },
    /// Content is not as long as its descriptor says.
    #[error("{what}: expected {expected} bytes, got {actual}")]
    SizeMismatch { what: String, expected: u64, actual: u64 },
    /// Content ends too early.
    #[error("{0}: unexpected EOF")]
    Truncated(String),
    /// A bound was passed.
    #[error("{what} is over the limit of {limit}")]
    TooLarge { what: String, limit: String },
    /// A layer's entry tries to act outside of the layer, or to make something that no layer may hold.
    #[error("refused entry {path:?}: {why}")]
    Hostile { path: String, why: String },
    /// The host's disk is full. Holds what was being written.
    #[error("write {0}: no space left on device")]
    DiskFull(String),
    /// A format, media type or algorithm that is not served.
    #[error("{0}")]
    Unsupported(String),
    /// The image has no variant for the platform asked for.
    #[error("image Manifest does not contain descriptor matching platform '{0}'")]
    NoMatchingPlatform(String),
    /// A document or an archive does not follow its format.
    #[error("{0}")]
    Malformed(String),
    /// The host failed: an I/O error, a thread that could not run.
    #[error("{0}")]
    Host(String),
}

impl PullError {
    pub(crate) fn new(
        reference: impl fmt::Display,
        stage: Stage,
        attempts: u32,
        kind: PullErrorKind,
    ) -> Self {
        Self { reference: reference.to_string(), stage, attempts: attempts.max(1), kind }
    }

    /// What went wrong, to decide upon.
    pub fn kind(&self) -> &PullErrorKind {
        &self.kind
    }

    /// The text after `CannotPullContainerError: ` in a task's stopped reason. One line, no secrets, bounded.
    pub fn reason(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reference, stage, attempts, kind } = self;
        match (stage, kind) {
            (Stage::Reference, kind) => write!(f, "failed to parse image reference {reference:?}: {kind}"),
            (Stage::Manifest, PullErrorKind::NoMatchingPlatform(_)) => {
                write!(f, "pull image manifest has been retried {attempts} time(s): {kind}")
            }
            (Stage::Manifest, kind) => {
                write!(
                    f,
                    "pull image manifest has been retried {attempts} time(s): failed to resolve ref {reference}: {kind}"
                )
            }
            (Stage::Blob, kind) => {
                write!(f, "ref pull has been retried {attempts} time(s): failed to copy: {kind}")
            }
            (
                Stage::Layer(_),
                PullErrorKind::Unreachable(_) | PullErrorKind::NotFound(_) | PullErrorKind::Unauthorized(_),
            ) => write!(f, "ref pull has been retried {attempts} time(s): failed to copy: {kind}"),
            (Stage::Layer(digest), kind) => {
                write!(
                    f,
                    "ref pull has been retried {attempts} time(s): failed to extract layer {digest}: {kind}"
                )
            }
            (Stage::Store, kind) => {
                write!(f, "ref pull has been retried {attempts} time(s): failed to store image: {kind}")
            }
        }
    }
}

impl std::error::Error for PullError {}

/// Makes text that came from elsewhere fit for a one-line reason: no control characters, at most 256 characters.
pub(crate) fn printable(text: &str) -> String {
    const MAX: usize = 256;
    let mut out: String =
        text.trim().chars().take(MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().nth(MAX).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_on_fargate() {
        let name = "docker.io/library/x:latest";
        let manifest = |kind| PullError::new(name, Stage::Manifest, 1, kind).reason();
        assert_eq!(
            manifest(PullErrorKind::NotFound(name.into())),
            "pull image manifest has been retried 1 time(s): failed to resolve ref docker.io/library/x:latest: \
             docker.io/library/x:latest: not found"
        );
        assert_eq!(
            manifest(PullErrorKind::NoMatchingPlatform("linux/amd64".into())),
            "pull image manifest has been retried 1 time(s): image Manifest does not contain descriptor matching \
             platform 'linux/amd64'"
        );
        let digest = Digest::of(b"x");
        assert_eq!(
            PullError::new(
                name,
                Stage::Layer(digest.to_string()),
                2,
                PullErrorKind::DiskFull("usr/bin/x".into())
            )
            .reason(),
            format!(
                "ref pull has been retried 2 time(s): failed to extract layer {digest}: write usr/bin/x: no space left on device"
            )
        );
    }

    #[test]
    fn foreign_text_is_tamed() {
        assert_eq!(printable("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(printable(&"é".repeat(300)).chars().count(), 257);
    }
}
