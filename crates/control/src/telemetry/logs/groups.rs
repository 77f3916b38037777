//! Log groups: create, delete, change, list.

use std::collections::BTreeMap;

use super::record::{self, GroupRecord};
use super::writer::Transaction;
use super::{LogError, LogStore, MAX_TAGS, keys};
use crate::keys::Scope;

/// A group to create. Names and tags are taken as valid.
#[derive(Clone, Debug, Default)]
pub struct NewGroup {
    pub name: String,
    /// `STANDARD` when empty.
    pub class: String,
    pub kms_key_id: Option<String>,
    pub deletion_protection: bool,
    pub tags: BTreeMap<String, String>,
}

/// A group as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogGroup {
    pub name: String,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// `None`: events never expire.
    pub retention_days: Option<u32>,
    /// Message bytes and 26 an event.
    pub stored_bytes: u64,
    pub class: String,
    pub kms_key_id: Option<String>,
    pub deletion_protection: bool,
    pub tags: BTreeMap<String, String>,
}

/// Which names a listing keeps.
#[derive(Clone, Debug, Default)]
pub enum NamePattern {
    #[default]
    Any,
    Prefix(String),
    /// Occurs anywhere, in this case.
    Contains(String),
    /// One of these, each anchored at the start when it begins with `^` (`ListLogGroups`).
    AnyOf(Vec<String>),
}

impl NamePattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => name.starts_with(prefix),
            Self::Contains(part) => name.contains(part),
            Self::AnyOf(parts) => parts.iter().any(|part| match part.strip_prefix('^') {
                Some(start) => name.starts_with(start),
                None => name.contains(part.as_str()),
            }),
        }
    }
}

/// One page of [`LogStore::describe_groups`].
#[derive(Clone, Debug, Default)]
pub struct GroupQuery {
    pub names: NamePattern,
    pub class: Option<String>,
    /// Every listed tag must be there, with one of the values when there are any.
    pub tags: Vec<(String, Vec<String>)>,
    pub token: Option<String>,
    pub limit: usize,
}

#[derive(Clone, Debug)]
pub struct GroupPage {
    /// By name, ascending.
    pub groups: Vec<LogGroup>,
    pub next_token: Option<String>,
}

impl LogStore {
    /// Creates a group.
    ///
    /// # Errors
    /// `GroupExists`, `TooManyTags`.
    pub async fn create_group(&self, scope: &Scope, group: NewGroup) -> Result<(), LogError> {
        if group.tags.len() > MAX_TAGS {
            return Err(LogError::TooManyTags);
        }
        let scope = scope.clone();
        self.write(0, false, move |tx| create(tx, &scope, group)).await
    }

    /// Deletes a group with all its streams; their events are gone at once, and their disk space after
    /// the next [`LogStore::sweep`].
    ///
    /// # Errors
    /// `GroupNotFound`, `DeletionProtected`.
    pub async fn delete_group(&self, scope: &Scope, name: &str) -> Result<(), LogError> {
        let key = keys::group(scope, name);
        self.write(0, false, move |tx| {
            let record = load(tx, &key)?;
            if record.deletion_protection {
                return Err(LogError::DeletionProtected);
            }
            tx.remove(key);
            tx.remove(keys::stored_bytes(record.id));
            tx.put(keys::trash(record.id, None), Vec::new());
            Ok(())
        })
        .await
    }

    /// Expires the group's events after `days`, or never.
    ///
    /// # Errors
    /// `GroupNotFound`.
    pub async fn set_retention(&self, scope: &Scope, name: &str, days: Option<u32>) -> Result<(), LogError> {
        self.change_group(scope, name, move |record| {
            record.retention_days = days;
            Ok(())
        })
        .await
    }

    /// Adds tags, replacing the values of those that are there.
    ///
    /// # Errors
    /// `GroupNotFound`, `TooManyTags`.
    pub async fn tag_group(
        &self,
        scope: &Scope,
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<(), LogError> {
        self.change_group(scope, name, move |record| {
            record.tags.extend(tags);
            if record.tags.len() > MAX_TAGS { Err(LogError::TooManyTags) } else { Ok(()) }
        })
        .await
    }

    /// Removes tags; those that are not there are passed over.
    ///
    /// # Errors
    /// `GroupNotFound`.
    pub async fn untag_group(&self, scope: &Scope, name: &str, keys: Vec<String>) -> Result<(), LogError> {
        self.change_group(scope, name, move |record| {
            record.tags.retain(|key, _| !keys.contains(key));
            Ok(())
        })
        .await
    }

    /// One group.
    ///
    /// # Errors
    /// `GroupNotFound`.
    pub async fn group(&self, scope: &Scope, name: &str) -> Result<LogGroup, LogError> {
        let (scope, name) = (scope.clone(), name.to_owned());
        self.read(move |inner| {
            let record = inner.group(&scope, &name)?;
            inner.log_group(name, record)
        })
        .await
    }

    /// Lists groups by name.
    ///
    /// # Errors
    /// `InvalidToken`.
    pub async fn describe_groups(&self, scope: &Scope, query: GroupQuery) -> Result<GroupPage, LogError> {
        let scope = scope.clone();
        self.read(move |inner| inner.describe_groups(&scope, &query)).await
    }

    async fn change_group(
        &self,
        scope: &Scope,
        name: &str,
        change: impl FnOnce(&mut GroupRecord) -> Result<(), LogError> + Send + 'static,
    ) -> Result<(), LogError> {
        let key = keys::group(scope, name);
        self.write(0, false, move |tx| {
            let mut record = load(tx, &key)?;
            change(&mut record)?;
            tx.put(key, record::encode(&record));
            Ok(())
        })
        .await
    }
}

pub(super) fn create(tx: &mut Transaction<'_>, scope: &Scope, group: NewGroup) -> Result<(), LogError> {
    tx.require_room()?;
    let key = keys::group(scope, &group.name);
    if tx.get(&key)?.is_some() {
        return Err(LogError::GroupExists);
    }
    let record = GroupRecord {
        id: tx.id(),
        created_at: tx.now,
        retention_days: None,
        class: if group.class.is_empty() { "STANDARD".to_owned() } else { group.class },
        kms_key_id: group.kms_key_id,
        deletion_protection: group.deletion_protection,
        tags: group.tags,
    };
    tx.put(key, record::encode(&record));
    Ok(())
}

pub(super) fn load(tx: &Transaction<'_>, key: &[u8]) -> Result<GroupRecord, LogError> {
    record::decode(&tx.get(key)?.ok_or(LogError::GroupNotFound)?, "group")
}

impl super::Inner {
    fn log_group(&self, name: String, record: GroupRecord) -> Result<LogGroup, LogError> {
        let stored = self.meta.get(keys::stored_bytes(record.id))?;
        Ok(LogGroup {
            name,
            created_at: record.created_at,
            retention_days: record.retention_days,
            stored_bytes: stored.map_or(Ok(0), |bytes| keys::number(&bytes))?,
            class: record.class,
            kms_key_id: record.kms_key_id,
            deletion_protection: record.deletion_protection,
            tags: record.tags,
        })
    }

    fn describe_groups(&self, scope: &Scope, query: &GroupQuery) -> Result<GroupPage, LogError> {
        let list = format!("groups/{}/{}", scope.account, scope.region);
        let base = keys::group(scope, "");
        let prefix = match &query.names {
            NamePattern::Prefix(prefix) => keys::group(scope, prefix),
            _ => base.clone(),
        };
        let after = match &query.token {
            Some(token) => Some(self.tokens.read_listing(token, &list)?),
            None => None,
        };
        let mut page = GroupPage { groups: Vec::new(), next_token: None };
        for entry in self.meta.range(after.clone().unwrap_or(prefix.clone())..) {
            let (key, value) = entry.into_inner()?;
            if !key.starts_with(&prefix) {
                break;
            }
            if after.as_deref() == Some(&*key) {
                continue;
            }
            let name =
                std::str::from_utf8(&key[base.len()..]).map_err(|_| LogError::Corrupt("group name"))?;
            if !query.names.matches(name) {
                continue;
            }
            let record: GroupRecord = record::decode(&value, "group")?;
            if query.class.as_ref().is_some_and(|class| *class != record.class)
                || !tagged(&record, &query.tags)
            {
                continue;
            }
            if page.groups.len() == query.limit.max(1) {
                let last = page.groups.last().map(|group| keys::group(scope, &group.name));
                page.next_token = last.map(|key| self.tokens.listing(&list, &key));
                break;
            }
            page.groups.push(self.log_group(name.to_owned(), record)?);
        }
        Ok(page)
    }
}

fn tagged(record: &GroupRecord, wanted: &[(String, Vec<String>)]) -> bool {
    wanted.iter().all(|(key, values)| {
        record
            .tags
            .get(key)
            .is_some_and(|value| values.is_empty() || values.iter().any(|v| tag_value(v, value)))
    })
}

/// A wanted value may begin with `!` (not) and begin or end with `*` (any text).
fn tag_value(wanted: &str, value: &str) -> bool {
    if let Some(unwanted) = wanted.strip_prefix('!') {
        return !tag_value(unwanted, value);
    }
    match (wanted.strip_prefix('*'), wanted.strip_suffix('*')) {
        (Some(_), Some(_)) if wanted.len() > 1 => value.contains(&wanted[1..wanted.len() - 1]),
        (Some(end), None) => value.ends_with(end),
        (None, Some(start)) => value.starts_with(start),
        (Some(_), Some(_)) => true,
        (None, None) => value == wanted,
    }
}
