//! Emptying the store, for servers whose state is thrown away.

use super::record::GroupRecord;
use super::{LogError, LogStore, keys, record};

impl LogStore {
    /// Deletes every group of every account and region, protected ones too. Their events are gone at
    /// once, and their disk space after the next [`LogStore::sweep`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn clear(&self) -> Result<(), LogError> {
        let groups = self
            .read(|inner| {
                let mut groups = Vec::new();
                for entry in inner.meta.prefix(keys::GROUPS) {
                    groups.push(entry.key()?.to_vec());
                }
                Ok(groups)
            })
            .await?;
        for key in groups {
            self.write(0, false, move |tx| {
                if let Some(found) = tx.get(&key)? {
                    let group: GroupRecord = record::decode(&found, "group")?;
                    tx.remove(key);
                    tx.remove(keys::stored_bytes(group.id));
                    tx.put(keys::trash(group.id, None), Vec::new());
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
