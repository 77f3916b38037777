//! What goes away by itself: images that lifecycle policies expire, uploads that nobody goes on with,
//! blobs that no image refers to.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use model::Timestamp;
use store::{CommitError, Range, Txn};

use super::Registry;
use super::error::RegistryError;
use super::lifecycle::{Candidate, Policy};
use super::name::{Digest, Namespace, RepositoryName};
use super::record::{
    ALL, BLOB_LINKS, BlobLink, IMAGES, ImageRecord, LIFECYCLE_POLICIES, LifecyclePolicyRecord,
    parse_blob_link, parse_image, parse_lifecycle_policy,
};

/// Keys read at once.
const PAGE: usize = 500;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Images that lifecycle policies expired.
    pub expired_images: usize,
    /// Uploads that were cancelled for their age.
    pub expired_uploads: usize,
    /// Blobs that repositories lost because none of their images refers to them.
    pub unlinked_blobs: usize,
    /// Files that were removed because no repository has their blob.
    pub removed_files: usize,
    /// The bytes in those files.
    pub removed_bytes: u64,
}

/// The content that the images of each repository refer to, their manifests included.
type Marks = HashMap<(Namespace, RepositoryName), HashSet<Digest>>;

impl Registry {
    /// Applies lifecycle policies, cancels expired uploads and removes unreferenced blobs. Safe beside
    /// pushes; to be called about every hour. Repeating an interrupted sweep is harmless.
    pub async fn sweep(&self, now: Timestamp) -> Result<Swept, RegistryError> {
        let mut swept = Swept::default();
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(now.millis().max(0) as u64);
        swept.expired_uploads = self.inner.uploads.expire(time).await;
        swept.expired_images = self.apply_lifecycle_policies(now).await?;
        swept.unlinked_blobs = self.unlink_unreferenced(now).await?;
        self.remove_unlinked_files(&mut swept).await?;
        Ok(swept)
    }

    /// Empties the registry: repositories, images and uploads of all accounts, and their files. Tokens
    /// stay good. For servers whose state is thrown away; not meant to run beside pushes.
    pub async fn clear(&self) -> Result<(), RegistryError> {
        self.inner.uploads.clear().await?;
        self.store().commit(Txn::new().delete_prefix(ALL).delete_prefix(BLOB_LINKS)).await?;
        self.remove_unlinked_files(&mut Swept::default()).await
    }

    async fn apply_lifecycle_policies(&self, now: Timestamp) -> Result<usize, RegistryError> {
        let mut expired = 0;
        let mut after: Option<String> = None;
        loop {
            let page = self.page::<LifecyclePolicyRecord>(LIFECYCLE_POLICIES, after.as_deref()).await?;
            for (key, policy) in page.entries {
                let Some((namespace, name)) = parse_lifecycle_policy(&key) else { continue };
                match Policy::parse(&policy.value.text) {
                    Ok(parsed) => {
                        for (image, _) in self.expiring_images(&namespace, &name, &parsed, now).await? {
                            match self.delete_image(&namespace, &name, &image.digest).await {
                                Ok(_) => expired += 1,
                                // Deleted, or referred to by a list, since it was looked at.
                                Err(
                                    RegistryError::ImageNotFound { .. }
                                    | RegistryError::ImageReferenced(_)
                                    | RegistryError::RepositoryNotFound(_),
                                ) => {}
                                Err(error) => return Err(error),
                            }
                        }
                        self.mark_evaluated(&key, policy, now.millis()).await?;
                    }
                    // It was valid when it was put: the rules for policies have changed since.
                    Err(reason) => tracing::warn!(key, reason, "a lifecycle policy is not applied"),
                }
                after = Some(key);
            }
            if !page.more {
                return Ok(expired);
            }
        }
    }

    /// The images that a policy would expire now, with the priority of the rule that does.
    pub async fn expiring_images(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Vec<(ImageRecord, u32)>, RegistryError> {
        let mut images: Vec<ImageRecord> = Vec::new();
        loop {
            let last = images.last().map(|image| image.digest);
            let (page, more) = self.images(namespace, name, last.as_ref(), PAGE).await?;
            images.extend(page);
            if !more {
                break;
            }
        }
        let candidates: Vec<Candidate<'_>> = images
            .iter()
            .map(|image| Candidate {
                tags: &image.tags,
                pushed_at: image.pushed_at,
                referenced: !image.parents.is_empty(),
            })
            .collect();
        let expiring = policy.evaluate(&candidates, now.millis());
        Ok(expiring.into_iter().map(|expiry| (images[expiry.image].clone(), expiry.rule_priority)).collect())
    }

    /// Removes the links to blobs that no image refers to and no pusher has asked for lately.
    ///
    /// A push writes the links that its image needs in the transaction that makes the image. So a link
    /// that was last written before the images were read, and that none of them needs, is needed by
    /// none that came later, and the guard on its revision says if one comes while it is deleted.
    async fn unlink_unreferenced(&self, now: Timestamp) -> Result<usize, RegistryError> {
        let before = self.store().revision().await?;
        let marks = self.mark().await?;
        let grace = i64::try_from(self.options().collect_after.as_millis()).unwrap_or(i64::MAX);
        let mut unlinked = 0;
        let mut after: Option<String> = None;
        loop {
            let page = self.page::<BlobLink>(BLOB_LINKS, after.as_deref()).await?;
            for (key, link) in page.entries {
                after = Some(key.clone());
                let Some((digest, namespace, name)) = parse_blob_link(&key) else { continue };
                let idle = now.millis().saturating_sub(link.value.touched_at) >= grace;
                let marked = marks.get(&(namespace, name)).is_some_and(|marked| marked.contains(&digest));
                if marked || !idle || link.revision > before {
                    continue;
                }
                let txn = Txn::new().expect_revision(key.as_str(), link.revision).delete(key);
                match self.store().commit(txn).await {
                    Ok(_) => unlinked += 1,
                    Err(CommitError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !page.more {
                return Ok(unlinked);
            }
        }
    }

    async fn mark(&self) -> Result<Marks, RegistryError> {
        let mut marks = Marks::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.page::<ImageRecord>(IMAGES, after.as_deref()).await?;
            after = page.entries.last().map(|(key, _)| key.clone());
            for (key, image) in page.entries {
                if let Some(place) = parse_image(&key) {
                    let marked = marks.entry(place).or_default();
                    marked.insert(image.value.digest);
                    marked.extend(image.value.blobs);
                }
            }
            if !page.more {
                return Ok(marks);
            }
        }
    }

    async fn page<T: serde::de::DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<store::JsonRange<T>, RegistryError> {
        let mut range = Range::prefix(prefix).limit(PAGE);
        if let Some(after) = after {
            range = range.after(after);
        }
        Ok(self.store().range_json(range).await?)
    }

    async fn remove_unlinked_files(&self, swept: &mut Swept) -> Result<(), RegistryError> {
        for first in 0..=u8::MAX {
            let blobs = self.inner.blobs.clone();
            let found = tokio::task::spawn_blocking(move || blobs.list(first))
                .await
                .map_err(std::io::Error::other)??;
            for (digest, bytes) in found {
                if self.is_linked(&digest).await? {
                    continue;
                }
                // Looked at again while no push is between its file and its link.
                let _alone = self.inner.collector.write().await;
                if self.is_linked(&digest).await? {
                    continue;
                }
                let blobs = self.inner.blobs.clone();
                tokio::task::spawn_blocking(move || blobs.remove(&digest))
                    .await
                    .map_err(std::io::Error::other)??;
                swept.removed_files += 1;
                swept.removed_bytes += bytes;
            }
        }
        Ok(())
    }

    /// Takes a blob from the repository. Refused while an image there refers to it.
    pub(in crate::registry) async fn unlink_blob(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let key = namespace.blob_link(name, digest);
        let read = self.store().get_json::<BlobLink>(&key).await?;
        let Some(read) = read.filter(|read| !read.value.manifest) else {
            return Err(RegistryError::BlobUnknown(*digest));
        };
        // The link was read first: an image that comes after this look changes it.
        let mut after = None;
        loop {
            let (images, more) = self.images(namespace, name, after.as_ref(), PAGE).await?;
            if let Some(image) = images.iter().find(|image| image.blobs.contains(digest)) {
                return Err(RegistryError::BlobReferenced(image.digest));
            }
            after = images.last().map(|image| image.digest);
            if !more {
                break;
            }
        }
        let txn = Txn::new().expect_revision(key.as_str(), read.revision).delete(key);
        Ok(self.store().commit(txn).await.map(|_| ())?)
    }
}
