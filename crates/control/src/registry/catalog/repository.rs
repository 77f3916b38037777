//! Repositories: making, reading, changing, deleting.

use store::{Range, Store, Txn, Versioned};

use super::super::Registry;
use super::super::error::RegistryError;
use super::super::name::{Namespace, RepositoryName};
use super::super::record::{
    LifecyclePolicyRecord, LifecyclePreviewRecord, Millis, RepositoryPolicyRecord, RepositoryRecord,
};
use super::{Decision, transact};

/// The repository, or [`RegistryError::RepositoryNotFound`].
pub(super) async fn read(
    store: &Store,
    namespace: &Namespace,
    name: &RepositoryName,
) -> Result<Versioned<RepositoryRecord>, RegistryError> {
    store
        .get_json(&namespace.repository(name))
        .await?
        .ok_or_else(|| RegistryError::RepositoryNotFound(name.clone()))
}

impl Registry {
    /// The repository's settings.
    pub async fn repository(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
    ) -> Result<RepositoryRecord, RegistryError> {
        Ok(read(self.store(), namespace, name).await?.value)
    }

    /// Makes a repository.
    pub async fn create_repository(
        &self,
        namespace: &Namespace,
        record: &RepositoryRecord,
    ) -> Result<(), RegistryError> {
        let key = namespace.repository(&record.name);
        let txn = Txn::new().expect_absent(key.as_str()).put_json(key, record);
        match self.store().commit(txn).await {
            Ok(_) => Ok(()),
            Err(store::CommitError::Conflict { .. }) => {
                Err(RegistryError::RepositoryExists(record.name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the repository with default settings if it does not exist: the first push does.
    pub(in crate::registry) async fn ensure_repository(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
    ) -> Result<(), RegistryError> {
        match self.repository(namespace, name).await {
            Err(RegistryError::RepositoryNotFound(_)) => {}
            other => return other.map(|_| ()),
        }
        let record = RepositoryRecord::new(name.clone(), self.now());
        match self.create_repository(namespace, &record).await {
            Err(RegistryError::RepositoryExists(_)) => Ok(()),
            other => other,
        }
    }

    /// At most `limit` repositories after the name `after`, in order of name, and whether there are
    /// more.
    pub async fn repositories(
        &self,
        namespace: &Namespace,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<(Vec<RepositoryRecord>, bool), RegistryError> {
        let mut range = Range::prefix(namespace.repositories()).limit(limit);
        if let Some(after) = after {
            range = range.after(namespace.repository(after));
        }
        let found = self.store().range_json(range).await?;
        let records = found.entries.into_iter().map(|(_, entry)| entry.value);
        Ok((records.collect(), found.more))
    }

    /// Changes the repository's settings and returns them.
    pub async fn update_repository(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        change: impl Fn(&mut RepositoryRecord) -> Result<(), RegistryError>,
    ) -> Result<RepositoryRecord, RegistryError> {
        let change = &change;
        transact(self.store(), || async move {
            let read = read(self.store(), namespace, name).await?;
            let mut record = read.value;
            change(&mut record)?;
            let key = namespace.repository(name);
            let txn = Txn::new().expect_revision(key.as_str(), read.revision);
            Ok(Decision::Commit(txn.put_json(key, &record), record))
        })
        .await
    }

    /// Deletes the repository, with its images only if `force` is set.
    pub async fn delete_repository(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        force: bool,
    ) -> Result<RepositoryRecord, RegistryError> {
        transact(self.store(), || async move {
            let read = read(self.store(), namespace, name).await?;
            let mut record = read.value;
            let mut revision = read.revision;
            let key = namespace.repository(name);
            if !force && record.may_hold_images {
                // Said first, looked at then: a push that comes after this changes the record again
                // and so defeats the deletion below.
                record.may_hold_images = false;
                let txn = Txn::new().expect_revision(key.as_str(), revision).put_json(key.as_str(), &record);
                revision = self.store().commit(txn).await?;
                let images = Range::prefix(namespace.images(name)).keys_only().limit(1);
                if !self.store().range(images).await?.kvs.is_empty() {
                    record.may_hold_images = true;
                    let txn = Txn::new().expect_revision(key.as_str(), revision).put_json(key, &record);
                    return match self.store().commit(txn).await {
                        // Another change of the record said the same, or deleted it.
                        Ok(_) | Err(store::CommitError::Conflict { .. }) => {
                            Err(RegistryError::RepositoryNotEmpty(name.clone()))
                        }
                        Err(error) => Err(error.into()),
                    };
                }
            }
            let txn = Txn::new()
                .expect_revision(key.as_str(), revision)
                .delete(key)
                .delete_prefix(namespace.images(name))
                .delete_prefix(namespace.tags(name))
                .delete_prefix(namespace.all_referrers(name))
                .delete(namespace.lifecycle_policy(name))
                .delete(namespace.lifecycle_preview(name))
                .delete(namespace.repository_policy(name));
            Ok(Decision::Commit(txn, record))
        })
        .await
    }

    /// The repository's lifecycle policy, if it has one.
    pub async fn lifecycle_policy(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
    ) -> Result<Option<LifecyclePolicyRecord>, RegistryError> {
        self.attachment(namespace, name, namespace.lifecycle_policy(name)).await
    }

    /// Sets (or with `None` removes) the repository's lifecycle policy.
    pub async fn set_lifecycle_policy(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        record: Option<&LifecyclePolicyRecord>,
    ) -> Result<(), RegistryError> {
        self.attach(namespace, name, namespace.lifecycle_policy(name), record).await
    }

    /// The repository's resource policy, if it has one.
    pub async fn repository_policy(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
    ) -> Result<Option<RepositoryPolicyRecord>, RegistryError> {
        self.attachment(namespace, name, namespace.repository_policy(name)).await
    }

    /// Sets (or with `None` removes) the repository's resource policy.
    pub async fn set_repository_policy(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        record: Option<&RepositoryPolicyRecord>,
    ) -> Result<(), RegistryError> {
        self.attach(namespace, name, namespace.repository_policy(name), record).await
    }

    /// The last lifecycle policy preview that was started, if any.
    pub async fn lifecycle_preview(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
    ) -> Result<Option<LifecyclePreviewRecord>, RegistryError> {
        self.attachment(namespace, name, namespace.lifecycle_preview(name)).await
    }

    /// Keeps the document of a lifecycle policy preview.
    pub async fn set_lifecycle_preview(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        record: &LifecyclePreviewRecord,
    ) -> Result<(), RegistryError> {
        let key = namespace.lifecycle_preview(name);
        self.attach(namespace, name, key, Some(record)).await
    }

    async fn attachment<T: serde::de::DeserializeOwned>(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        key: String,
    ) -> Result<Option<T>, RegistryError> {
        read(self.store(), namespace, name).await?;
        let found = self.store().get_json(&key).await?;
        Ok(found.map(|found| found.value))
    }

    async fn attach<T: serde::Serialize>(
        &self,
        namespace: &Namespace,
        name: &RepositoryName,
        key: String,
        record: Option<&T>,
    ) -> Result<(), RegistryError> {
        let key = &key;
        transact(self.store(), || async move {
            read(self.store(), namespace, name).await?;
            let txn = Txn::new().expect_exists(namespace.repository(name));
            let txn = match record {
                Some(record) => txn.put_json(key.as_str(), record),
                None => txn.delete(key.as_str()),
            };
            Ok(Decision::Commit(txn, ()))
        })
        .await
    }

    /// Notes that the lifecycle policy was applied, unless it was changed meanwhile.
    pub(in crate::registry) async fn mark_evaluated(
        &self,
        key: &str,
        policy: Versioned<LifecyclePolicyRecord>,
        now: Millis,
    ) -> Result<(), RegistryError> {
        let record = LifecyclePolicyRecord { last_evaluated_at: Some(now), ..policy.value };
        let txn = Txn::new().expect_revision(key, policy.revision).put_json(key, &record);
        match self.store().commit(txn).await {
            Ok(_) | Err(store::CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
