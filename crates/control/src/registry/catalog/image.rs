//! Images and tags: pushing manifests, moving tags, deleting.

use std::collections::{BTreeMap, BTreeSet};

use store::{Range, Revision, Store, Txn, Versioned};

use super::super::Registry;
use super::super::error::RegistryError;
use super::super::manifest::Manifest;
use super::super::name::{Digest, Namespace, Reference, RepositoryName, Tag};
use super::super::record::{BlobLink, ImageRecord, Millis, TagRecord};
use super::{Decision, expect, repository, transact};

/// The most tags that one image can have (ECR service quotas, "Tags per image").
pub const MAX_TAGS: usize = 1_000;

/// The most manifest lists of a repository that one image can be in.
const MAX_PARENTS: usize = 5_000;

/// The most tags that go in one transaction with an image (see `store::MAX_TXN_OPERATIONS`, and
/// `manifest.rs` for the most that a list refers to).
const TAGS_AT_ONCE: usize = 200;

/// How exactly `last_pulled_at` is kept; every renewal is a write.
const PULL_GRANULARITY: Millis = 3_600_000;

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The image as it is now.
    pub image: ImageRecord,
    /// Whether anything changed: false if the image was there under this tag already.
    pub changed: bool,
}

/// What removing a tag did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untagged {
    /// The image that had the tag.
    pub digest: Digest,
    /// Whether it was the last tag and the image went with it.
    pub image_deleted: bool,
}

/// The image records of a repository that one transaction changes, each read and written once however
/// many reasons there are to change it (a tag can move from an image to the list that refers to it).
struct Images<'a> {
    store: &'a Store,
    namespace: &'a Namespace,
    name: &'a RepositoryName,
    /// With the revision that was read; `None` for a new image.
    records: BTreeMap<Digest, (Option<Revision>, ImageRecord)>,
}

impl<'a> Images<'a> {
    fn new(store: &'a Store, namespace: &'a Namespace, name: &'a RepositoryName) -> Self {
        Self { store, namespace, name, records: BTreeMap::new() }
    }

    /// The record to change, if there is such an image.
    async fn get(&mut self, digest: &Digest) -> Result<Option<&mut ImageRecord>, RegistryError> {
        if !self.records.contains_key(digest) {
            let key = self.namespace.image(self.name, digest);
            if let Some(read) = self.store.get_json::<ImageRecord>(&key).await? {
                self.records.insert(*digest, (Some(read.revision), read.value));
            }
        }
        Ok(self.records.get_mut(digest).map(|(_, record)| record))
    }

    fn insert(&mut self, image: ImageRecord) {
        self.records.insert(image.digest, (None, image));
    }

    /// The tags of an image that was read or inserted.
    fn tags(&self, digest: &Digest) -> BTreeSet<Tag> {
        self.records.get(digest).map(|(_, record)| record.tags.clone()).unwrap_or_default()
    }

    /// Adds all records, under guards, to the transaction.
    fn write(self, mut txn: Txn) -> Txn {
        for (digest, (revision, record)) in self.records {
            let key = self.namespace.image(self.name, &digest);
            txn = expect(txn, &key, revision).put_json(key, &record);
        }
        txn
    }
}

impl Registry {
    /// The image of that tag or digest.
    pub async fn image(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<ImageRecord, RegistryError> {
        Ok(self.read_image(namespace, name, reference).await?.value)
    }

    async fn read_image(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<Versioned<ImageRecord>, RegistryError> {
        // A tag can move between the two reads; then its old image may be gone, and it is read again.
        for _ in 0..super::ATTEMPTS {
            let digest = match reference {
                Reference::Digest(digest) => *digest,
                Reference::Tag(tag) => {
                    let found = self.store().get_json::<TagRecord>(&namespace.tag(name, tag)).await?;
                    match found {
                        Some(found) => found.value.digest,
                        None => break,
                    }
                }
            };
            let found = self.store().get_json(&namespace.image(name, &digest)).await?;
            match (found, reference) {
                (Some(found), _) => return Ok(found),
                (None, Reference::Digest(_)) => break,
                (None, Reference::Tag(_)) => {}
            }
        }
        // Which of the two is missing matters to the client.
        repository::read(self.store(), namespace, name).await?;
        Err(RegistryError::ImageNotFound { repository: name.clone(), reference: reference.to_string() })
    }

    /// Stores a manifest, whose bytes are in their file and kept by the caller's hold on the
    /// collector, as an image of the repository, and names it by `tag`.
    ///
    /// Refused if content that the manifest refers to is not in the repository, or if the tag names
    /// another image and is immutable. Pushing what is there already changes nothing.
    pub(in crate::registry) async fn put_image(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        manifest: &Manifest,
        (digest, bytes): (Digest, u64),
        tag: Option<&Tag>,
        now: Millis,
    ) -> Result<Pushed, RegistryError> {
        transact(self.store(), || async move {
            let repository = repository::read(self.store(), namespace, name).await?;
            let repository_key = namespace.repository(name);
            let mut txn = Txn::new().expect_revision(repository_key.as_str(), repository.revision);
            let mut images = Images::new(self.store(), namespace, name);
            let is_new = images.get(&digest).await?.is_none();
            if is_new {
                txn = self.add_image(txn, &mut images, manifest, (digest, bytes), now).await?;
            }
            let mut changed = is_new;
            if let Some(tag) = tag
                && !images.tags(&digest).contains(tag)
            {
                let tag_key = namespace.tag(name, tag);
                let current = self.store().get_json::<TagRecord>(&tag_key).await?;
                txn = expect(txn, &tag_key, current.as_ref().map(|read| read.revision));
                if let Some(current) = current {
                    if repository.value.is_immutable(tag) {
                        return Err(RegistryError::TagImmutable {
                            repository: name.clone(),
                            tag: tag.clone(),
                        });
                    }
                    // Read after the tag, the image may be gone already: then so is the tag, and the
                    // guard on it fails.
                    if let Some(old) = images.get(&current.value.digest).await? {
                        old.tags.remove(tag);
                    }
                }
                if images.tags(&digest).len() >= MAX_TAGS {
                    return Err(RegistryError::TooManyTags(MAX_TAGS));
                }
                if let Some(image) = images.get(&digest).await? {
                    image.tags.insert(tag.clone());
                }
                txn = txn.put_json(tag_key, &TagRecord { digest });
                changed = true;
            }
            let Some(image) = images.get(&digest).await?.cloned() else {
                return Err(RegistryError::Contended); // It was found or added above.
            };
            if !changed {
                return Ok(Decision::Done(Pushed { image, changed }));
            }
            if !repository.value.may_hold_images {
                let mut record = repository.value;
                record.may_hold_images = true;
                txn = txn.put_json(repository_key, &record);
            }
            Ok(Decision::Commit(images.write(txn), Pushed { image, changed }))
        })
        .await
    }

    /// Adds to `txn` and `images` what a new image brings along: guards on all it refers to (each also
    /// written, so that the collector or a deletion that has looked already fails), its bytes' link,
    /// and its place among its subject's referrers.
    async fn add_image(
        &self,
        mut txn: Txn,
        images: &mut Images<'_>,
        manifest: &Manifest,
        (digest, bytes): (Digest, u64),
        now: Millis,
    ) -> Result<Txn, RegistryError> {
        let (store, namespace, name) = (self.store(), images.namespace, images.name);
        let mut image = ImageRecord {
            digest,
            media_type: manifest.media_type.to_owned(),
            artifact_type: manifest.artifact_type.clone(),
            manifest_bytes: bytes,
            image_bytes: 0,
            pushed_at: now,
            last_pulled_at: None,
            tags: BTreeSet::new(),
            parents: BTreeSet::new(),
            children: Vec::new(),
            blobs: Vec::new(),
            subject: manifest.subject.as_ref().map(|subject| subject.digest),
        };
        let mut missing = Vec::new();
        for blob in manifest.blobs() {
            let key = namespace.blob_link(name, &blob.digest);
            let read = store.get_json::<BlobLink>(&key).await?;
            let Some(read) = read.filter(|read| !read.value.manifest) else {
                missing.push(blob.digest);
                continue;
            };
            let mut link = read.value;
            if link.bytes != blob.size {
                return Err(RegistryError::ManifestInvalid(format!(
                    "the manifest says that {} has {} bytes, it has {}",
                    blob.digest, blob.size, link.bytes
                )));
            }
            image.image_bytes = image.image_bytes.saturating_add(link.bytes);
            image.blobs.push(blob.digest);
            link.touched_at = now;
            if !blob.media_type.is_empty() {
                link.media_type = Some(blob.media_type.chars().take(255).collect());
            }
            txn = txn.expect_revision(key.as_str(), read.revision).put_json(key, &link);
        }
        if !missing.is_empty() {
            return Err(RegistryError::LayersNotFound(missing));
        }
        for child in &manifest.manifests {
            if image.children.contains(&child.digest) {
                continue;
            }
            match images.get(&child.digest).await? {
                Some(record) => {
                    image.image_bytes = image.image_bytes.max(record.image_bytes);
                    image.children.push(child.digest);
                    record.parents.insert(digest);
                    if record.parents.len() > MAX_PARENTS {
                        return Err(RegistryError::TooManyLists(MAX_PARENTS));
                    }
                }
                None => missing.push(child.digest),
            }
        }
        if !missing.is_empty() {
            return Err(RegistryError::ReferencedImagesNotFound(missing));
        }
        if let Some(subject) = &image.subject {
            txn = txn.put_json(namespace.referrer(name, subject, &digest), &());
        }
        // A config or layer with a manifest's bytes stays readable as a blob.
        if !image.blobs.contains(&digest) {
            let key = namespace.blob_link(name, &digest);
            let read = store.get_json::<BlobLink>(&key).await?;
            let link = BlobLink {
                bytes,
                media_type: Some(manifest.media_type.to_owned()),
                manifest: read.as_ref().is_none_or(|read| read.value.manifest),
                touched_at: now,
            };
            txn = expect(txn, &key, read.map(|read| read.revision)).put_json(key, &link);
        }
        images.insert(image);
        Ok(txn)
    }

    /// Deletes an image with all its tags. Refused while manifest lists refer to it.
    pub async fn delete_image(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<ImageRecord, RegistryError> {
        transact(self.store(), || async move {
            let mut read = self.read_image(namespace, name, &Reference::Digest(*digest)).await?;
            // A transaction has room for so many tags beside the image's children.
            while read.value.parents.is_empty() && read.value.tags.len() > TAGS_AT_ONCE {
                self.remove_some_tags(namespace, name, read).await?;
                read = self.read_image(namespace, name, &Reference::Digest(*digest)).await?;
            }
            let txn = self.remove_image(namespace, name, &read).await?;
            Ok(Decision::Commit(txn, read.value))
        })
        .await
    }

    /// Removes a tag from its image; with `delete_last`, as ECR's BatchDeleteImage does, an image
    /// whose last tag it was goes too.
    pub async fn untag_image(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        tag: &Tag,
        delete_last: bool,
    ) -> Result<Untagged, RegistryError> {
        transact(self.store(), || async move {
            let read = self.read_image(namespace, name, &Reference::Tag(tag.clone())).await?;
            let digest = read.value.digest;
            let last = read.value.tags.len() == 1 && read.value.tags.contains(tag);
            if last && delete_last {
                let txn = self.remove_image(namespace, name, &read).await?;
                let outcome = Untagged { digest, image_deleted: true };
                return Ok(Decision::Commit(txn, outcome));
            }
            let mut record = read.value;
            record.tags.remove(tag);
            let key = namespace.image(name, &digest);
            let txn = Txn::new()
                .expect_revision(key.as_str(), read.revision)
                .put_json(key, &record)
                .delete(namespace.tag(name, tag));
            let outcome = Untagged { digest, image_deleted: false };
            Ok(Decision::Commit(txn, outcome))
        })
        .await
    }

    /// Removes [`TAGS_AT_ONCE`] of the tags of an image that is being deleted.
    async fn remove_some_tags(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        read: Versioned<ImageRecord>,
    ) -> Result<(), RegistryError> {
        let mut record = read.value;
        let key = namespace.image(name, &record.digest);
        let mut txn = Txn::new().expect_revision(key.as_str(), read.revision);
        let kept = match record.tags.iter().nth(TAGS_AT_ONCE).cloned() {
            Some(first_kept) => record.tags.split_off(&first_kept),
            None => BTreeSet::new(),
        };
        for tag in &record.tags {
            txn = txn.delete(namespace.tag(name, tag));
        }
        record.tags = kept;
        match self.store().commit(txn.put_json(key, &record)).await {
            // Read again either way.
            Ok(_) | Err(store::CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A transaction that removes the image as it was read. Its blobs' links are left to the collector.
    async fn remove_image(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        read: &Versioned<ImageRecord>,
    ) -> Result<Txn, RegistryError> {
        let image = &read.value;
        if let Some(parent) = image.parents.first() {
            return Err(RegistryError::ImageReferenced(*parent));
        }
        let key = namespace.image(name, &image.digest);
        let mut txn = Txn::new().expect_revision(key.as_str(), read.revision).delete(key);
        let mut children = Images::new(self.store(), namespace, name);
        for child in &image.children {
            if let Some(child) = children.get(child).await? {
                child.parents.remove(&image.digest);
            }
        }
        for tag in &image.tags {
            txn = txn.delete(namespace.tag(name, tag));
        }
        if let Some(subject) = &image.subject {
            txn = txn.delete(namespace.referrer(name, subject, &image.digest));
        }
        Ok(children.write(txn))
    }

    /// Notes that the image was pulled, to the hour. Losing against another writer loses nothing that
    /// matters.
    pub async fn note_pull(&self, namespace: &Namespace, name: &RepositoryName, image: &ImageRecord) {
        let now = self.now();
        if image.last_pulled_at.is_some_and(|at| now - at < PULL_GRANULARITY) {
            return;
        }
        let key = namespace.image(name, &image.digest);
        let Ok(Some(read)) = self.store().get_json::<ImageRecord>(&key).await else {
            return;
        };
        let mut record = read.value;
        record.last_pulled_at = Some(now);
        let txn = Txn::new().expect_revision(key.as_str(), read.revision).put_json(key, &record);
        if let Err(error) = self.store().commit(txn).await {
            tracing::debug!(%error, "the time of a pull was not noted");
        }
    }

    /// At most `limit` images after the digest `after`, in order of digest, and whether there are
    /// more.
    pub async fn images(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<(Vec<ImageRecord>, bool), RegistryError> {
        let mut range = Range::prefix(namespace.images(name)).limit(limit);
        if let Some(after) = after {
            range = range.after(namespace.image(name, after));
        }
        let found = self.store().range_json(range).await?;
        let images = found.entries.into_iter().map(|(_, entry)| entry.value);
        Ok((images.collect(), found.more))
    }

    /// At most `limit` tags after `after` (which need not exist), in byte order, and whether there
    /// are more.
    pub async fn tags(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<String>, bool), RegistryError> {
        let prefix = namespace.tags(name);
        let mut range = Range::prefix(prefix.as_str()).keys_only().limit(limit);
        if let Some(after) = after {
            range = range.after(format!("{prefix}{after}"));
        }
        let found = self.store().range(range).await?;
        let tags = found.kvs.iter().filter_map(|kv| kv.key.strip_prefix(&prefix)).map(str::to_owned);
        Ok((tags.collect(), found.more))
    }

    /// At most `limit` digests of the images whose subject is `subject`, after `after`, and whether
    /// there are more.
    pub async fn referrers(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        subject: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<(Vec<Digest>, bool), RegistryError> {
        let prefix = namespace.referrers(name, subject);
        let mut range = Range::prefix(prefix.as_str()).keys_only().limit(limit);
        if let Some(after) = after {
            range = range.after(namespace.referrer(name, subject, after));
        }
        let found = self.store().range(range).await?;
        let digests = found.kvs.iter().filter_map(|kv| kv.key.strip_prefix(&prefix)?.parse().ok());
        Ok((digests.collect(), found.more))
    }
}
