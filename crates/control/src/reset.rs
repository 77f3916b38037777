//! Emptying everything, for servers whose state is thrown away (`coracle up --ephemeral`).

use store::{CommitError, Txn};

use crate::{first_start, keys};

/// Why not everything could be emptied.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("the server is not ephemeral: its state may not be thrown away")]
    NotEphemeral,
    #[error("the records cannot be deleted")]
    Commit(#[from] CommitError),
    #[error("the logs cannot be deleted")]
    Logs(#[from] crate::telemetry::logs::LogError),
    #[error("the registry cannot be emptied")]
    Registry(#[from] crate::registry::RegistryError),
    #[error("the first records cannot be made anew")]
    FirstStart(#[from] first_start::FirstStartError),
}

impl crate::Control {
    /// Deletes tasks (their hosts end them at once), definitions, clusters, logs and images. The
    /// account, its key and its default network stay.
    ///
    /// # Errors
    /// The server is not ephemeral, or a store fails.
    pub async fn reset(&self) -> Result<(), ResetError> {
        if !self.config.ephemeral {
            return Err(ResetError::NotEphemeral);
        }
        self.store.commit(Txn::new().delete_prefix(keys::ECS)).await?;
        self.logs.clear().await?;
        self.registry.clear().await?;
        let config = &self.config;
        first_start::create_cluster(&self.store, &config.account, &config.region, self.clock.now()).await?;
        Ok(())
    }
}
