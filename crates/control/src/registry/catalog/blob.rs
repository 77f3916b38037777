//! Links: which repository has which blob.

use store::{Range, Txn};

use super::super::Registry;
use super::super::error::RegistryError;
use super::super::name::{Digest, Namespace, RepositoryName};
use super::super::record::{BlobLink, Millis, blob_links};
use super::{Decision, expect, transact};

impl Registry {
    /// The link to a blob (not a manifest) that the repository has.
    pub async fn blob(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<BlobLink, RegistryError> {
        let link = self.store().get_json::<BlobLink>(&namespace.blob_link(name, digest)).await?;
        link.map(|link| link.value).filter(|link| !link.manifest).ok_or(RegistryError::BlobUnknown(*digest))
    }

    /// Keeps a blob that a pusher asked for, and will now not send, from being collected before the
    /// manifest that refers to it arrives.
    pub async fn touch_blob(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<BlobLink, RegistryError> {
        let now = self.now();
        let fresh = self.options().collect_after.as_millis() as i64 / 4;
        transact(self.store(), || async move {
            let key = namespace.blob_link(name, digest);
            let read = self.store().get_json::<BlobLink>(&key).await?;
            let Some(read) = read.filter(|read| !read.value.manifest) else {
                return Err(RegistryError::BlobUnknown(*digest));
            };
            let mut link = read.value;
            if now - link.touched_at < fresh {
                return Ok(Decision::Done(link));
            }
            link.touched_at = now;
            let txn = Txn::new().expect_revision(key.as_str(), read.revision);
            Ok(Decision::Commit(txn.put_json(key, &link), link))
        })
        .await
    }

    /// Links the blob, whose file is there and is kept by the caller's hold on the collector, to the
    /// repository.
    pub(in crate::registry) async fn link_blob(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        digest: &Digest,
        bytes: u64,
        now: Millis,
    ) -> Result<(), RegistryError> {
        transact(self.store(), || async move {
            super::repository::read(self.store(), namespace, name).await?;
            let key = namespace.blob_link(name, digest);
            let read = self.store().get_json::<BlobLink>(&key).await?;
            let revision = read.as_ref().map(|read| read.revision);
            let link = BlobLink {
                bytes,
                media_type: read.and_then(|read| read.value.media_type),
                manifest: false,
                touched_at: now,
            };
            let txn = Txn::new().expect_exists(namespace.repository(name));
            let txn = expect(txn, &key, revision).put_json(key, &link);
            Ok(Decision::Commit(txn, ()))
        })
        .await
    }

    /// The blob's link in `from`, or without it in any repository of the namespace.
    pub(in crate::registry) async fn find_blob(
        &self,
        namespace: &Namespace,
        from: Option<&RepositoryName>,
        digest: &Digest,
    ) -> Result<Option<BlobLink>, RegistryError> {
        let found = match from {
            Some(from) => match self.blob(namespace, from, digest).await {
                Ok(link) => Some(link),
                Err(RegistryError::BlobUnknown(_)) => None,
                Err(error) => return Err(error),
            },
            None => {
                let range = Range::prefix(namespace.blob_links(digest)).limit(1);
                let found = self.store().range_json::<BlobLink>(range).await?;
                found.entries.into_iter().next().map(|(_, entry)| entry.value)
            }
        };
        Ok(found.filter(|link| !link.manifest))
    }

    /// Whether any repository of any account has the blob.
    pub(in crate::registry) async fn is_linked(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let range = Range::prefix(blob_links(digest)).keys_only().limit(1);
        Ok(!self.store().range(range).await?.kvs.is_empty())
    }
}
