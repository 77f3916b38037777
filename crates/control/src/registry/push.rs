//! Pushing content: uploads that end as blobs of a repository, mounts, manifests.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use super::Registry;
use super::catalog::Pushed;
use super::error::RegistryError;
use super::manifest::{self, Manifest};
use super::name::{Digest, Namespace, RepositoryName, Tag, UploadId};
use super::record::{BlobLink, ImageRecord};
use super::upload::Session;

impl Registry {
    /// Makes the repository for a push, or says that it is not there where pushes do not make it.
    async fn open_for_push(&self, namespace: &Namespace, name: &RepositoryName) -> Result<(), RegistryError> {
        if self.options().create_on_push {
            self.ensure_repository(namespace, name).await
        } else {
            self.repository(namespace, name).await.map(|_| ())
        }
    }

    /// Begins the upload of a blob; the first push makes the repository.
    pub async fn begin_upload(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
    ) -> Result<Arc<Session>, RegistryError> {
        self.open_for_push(namespace, name).await?;
        self.inner.uploads.begin(namespace, name).await
    }

    /// The session of that id, if it uploads to that repository.
    pub fn upload(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        id: UploadId,
    ) -> Result<Arc<Session>, RegistryError> {
        self.inner.uploads.find(namespace, name, id)
    }

    /// Appends a body to the upload; see [`Uploads::append`](super::upload::Uploads::append).
    pub async fn append_upload<S, E>(
        &self,
        session: &Session,
        start: Option<u64>,
        length: Option<u64>,
        body: S,
    ) -> Result<u64, RegistryError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        self.inner.uploads.append(session, start, length, body).await
    }

    /// Ends the upload: its content, if it has the digest, becomes a blob of the repository. Returns
    /// its length in bytes.
    pub async fn finish_upload(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        session: &Arc<Session>,
        digest: Digest,
    ) -> Result<u64, RegistryError> {
        let (registry, namespace, name, session) =
            (self.clone(), namespace.clone(), name.clone(), session.clone());
        // On a task of its own: a client that goes away does not stop it between file and link.
        let finished = tokio::spawn(async move {
            // Long work (hashing, syncing) before the collector is held up.
            let sealed = registry.inner.uploads.seal(&session, digest).await?;
            let _kept = registry.inner.collector.read().await;
            let bytes = sealed.adopt(&registry.inner.blobs).await?;
            registry.link_blob(&namespace, &name, &digest, bytes, registry.now()).await?;
            Ok(bytes)
        });
        finished.await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }

    /// Cancels the upload.
    pub async fn cancel_upload(&self, session: &Session) -> Result<(), RegistryError> {
        self.inner.uploads.cancel(session).await
    }

    /// Gives the repository a blob that `from` (or, without it, any repository of the namespace) has.
    /// `None` if it has not: then the client uploads it.
    pub async fn mount_blob(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        from: Option<&RepositoryName>,
        digest: &Digest,
    ) -> Result<Option<BlobLink>, RegistryError> {
        let _kept = self.inner.collector.read().await;
        let Some(link) = self.find_blob(namespace, from, digest).await? else {
            return Ok(None);
        };
        self.open_for_push(namespace, name).await?;
        self.link_blob(namespace, name, digest, link.bytes, self.now()).await?;
        Ok(Some(link))
    }

    /// Stores a manifest as an image of the repository, with a tag or without. `expected` is the digest
    /// that the client says it has.
    pub async fn push_manifest(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        bytes: Bytes,
        content_type: Option<&str>,
        tag: Option<&Tag>,
        expected: Option<Digest>,
    ) -> Result<(Manifest, Pushed), RegistryError> {
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(RegistryError::DigestMismatch { expected, actual: digest });
        }
        let manifest = manifest::parse(&bytes, content_type)?;
        // Only one without any references can be the first thing that is pushed.
        if manifest.blobs().is_empty() && manifest.manifests.is_empty() {
            self.open_for_push(namespace, name).await?;
        }
        let length = bytes.len() as u64;
        let _kept = self.inner.collector.read().await;
        let blobs = self.inner.blobs.clone();
        tokio::task::spawn_blocking(move || blobs.put(&bytes, &digest))
            .await
            .map_err(std::io::Error::other)??;
        let pushed = self.put_image(namespace, name, &manifest, (digest, length), tag, self.now()).await?;
        Ok((manifest, pushed))
    }

    /// The bytes of an image's manifest, exactly as pushed.
    pub async fn manifest_bytes(&self, image: &ImageRecord) -> Result<Bytes, RegistryError> {
        let path = self.inner.blobs.path(&image.digest);
        let bytes = tokio::task::spawn_blocking(move || std::fs::read(path))
            .await
            .map_err(std::io::Error::other)??;
        Ok(bytes.into())
    }

    /// The open file of a blob that the repository has, and its length in bytes.
    pub async fn open_blob(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<(std::fs::File, u64), RegistryError> {
        let link = self.blob(namespace, name, digest).await?;
        let path = self.inner.blobs.path(digest);
        let opened = tokio::task::spawn_blocking(move || std::fs::File::open(path))
            .await
            .map_err(std::io::Error::other)?;
        match opened {
            Ok(file) => Ok((file, link.bytes)),
            // Its last link went after it was read.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(RegistryError::BlobUnknown(*digest))
            }
            Err(error) => Err(error.into()),
        }
    }
}
