//! What can go wrong in the registry, in one type that both faces translate: `/v2/` into the OCI
//! error codes (`http/error.rs`), the ECR API into AWS's (`api/ecr`).

use super::name::{Digest, RepositoryName, Tag, UploadId};

/// A refused or failed registry operation.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such repository.
    #[error("the repository '{0}' does not exist")]
    RepositoryNotFound(RepositoryName),
    /// A repository of that name is there already.
    #[error("the repository '{0}' already exists")]
    RepositoryExists(RepositoryName),
    /// It holds images, and deletion was not forced.
    #[error("the repository '{0}' still contains images")]
    RepositoryNotEmpty(RepositoryName),
    /// No image of that tag or digest.
    #[error("the image '{reference}' does not exist in the repository '{repository}'")]
    ImageNotFound {
        /// Where it was looked for.
        repository: RepositoryName,
        /// Its tag or digest.
        reference: String,
    },
    /// The tag names another image and may not be moved.
    #[error(
        "The image tag '{tag}' already exists in the '{repository}' repository and cannot be overwritten because the tag is immutable."
    )]
    TagImmutable {
        /// Where.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
    },
    /// The image has as many tags as it may.
    #[error("an image has at most {0} tags")]
    TooManyTags(usize),
    /// The image is in as many manifest lists as it may.
    #[error("an image is in at most {0} manifest lists of a repository")]
    TooManyLists(usize),
    /// The repository would have more resource tags than it may.
    #[error("a repository has at most {0} tags")]
    TooManyResourceTags(usize),
    /// Other images (manifest lists) refer to it.
    #[error("the image is referenced by the manifest list {0}: delete that first")]
    ImageReferenced(Digest),
    /// No such blob in this repository.
    #[error("the blob {0} does not exist in the repository")]
    BlobUnknown(Digest),
    /// An image of the repository refers to the blob.
    #[error("the image {0} refers to the blob: delete that first")]
    BlobReferenced(Digest),
    /// The manifest is not one, or not one of the kinds that are stored.
    #[error("{0}")]
    ManifestInvalid(String),
    /// The manifest is of a media type that is not stored.
    #[error("manifests of media type '{0}' are not supported")]
    ManifestUnsupported(String),
    /// The manifest is longer than the limit (bytes).
    #[error("a manifest has at most {0} bytes")]
    ManifestTooLarge(usize),
    /// Layers or config that the manifest names were not pushed to the repository.
    #[error("layers with digests {0:?} that the manifest names do not exist in the repository")]
    LayersNotFound(Vec<Digest>),
    /// Images that the manifest list names were not pushed to the repository.
    #[error("images with digests {0:?} that the manifest list names do not exist in the repository")]
    ReferencedImagesNotFound(Vec<Digest>),
    /// The content's digest is another than the client said.
    #[error("the content has digest {actual}, not {expected}")]
    DigestMismatch {
        /// What the client said.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// No such upload session: never begun, finished, cancelled or expired.
    #[error("the upload {0} does not exist: begin it again")]
    UploadUnknown(UploadId),
    /// Another request is writing to the session.
    #[error("another request is writing to the upload {0}")]
    UploadBusy(UploadId),
    /// A chunk does not begin where the upload has arrived.
    #[error("the next chunk has to begin at byte {expected}")]
    OffsetMismatch {
        /// The bytes received so far.
        expected: u64,
    },
    /// The body had another length than announced.
    #[error("the body has {actual} bytes where {expected} were announced")]
    SizeMismatch {
        /// Announced.
        expected: u64,
        /// Received.
        actual: u64,
    },
    /// The account has as many uploads under way as it may.
    #[error("the account has {0} uploads under way already: finish or cancel some")]
    TooManyUploads(usize),
    /// The blob is longer than the limit (bytes).
    #[error("a blob has at most {0} bytes")]
    BlobTooLarge(u64),
    /// The client stopped sending.
    #[error("the request's body ended early")]
    BodyInterrupted,
    /// Writers of the same records kept overtaking this one.
    #[error("the repository is being changed by too many others at once: try again")]
    Contended,
    /// The disk under the registry is full.
    #[error("the registry's disk is full")]
    DiskFull,
    /// A file of the registry could not be read or written.
    #[error("the registry's files cannot be read or written")]
    Files(#[source] std::io::Error),
    /// The store failed.
    #[error("the registry's metadata cannot be read or written")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<std::io::Error> for RegistryError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Files(error),
        }
    }
}
