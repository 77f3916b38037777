//! Control: the brain. API handlers write intent, the reconciler writes assignments, host sessions
//! write observations; nobody calls back up (`docs/architecture.md`).

pub mod api;
pub mod clock;
pub mod credentials;
pub mod endpoint;
pub mod first_start;
pub mod hosts;
pub mod keys;
pub mod random;
pub mod reconcile;
pub mod registry;
pub mod reset;
pub mod snapshots;
pub mod telemetry;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use link::{RegistryAccess, RegistryImage};
use model::network::Cidr;
use model::spec::Isolation;
use model::task::Task;
use model::{AccountId, Region, Secret};
use store::Store;
use tokio::sync::{Notify, watch};

use crate::api::ecs::Ecs;
use crate::clock::Clock;
use crate::credentials::AccessKey;
use crate::endpoint::Endpoint;
use crate::first_start::{DefaultNetwork, FirstStartError};
use crate::hosts::Hosts;
use crate::hosts::pulls::Pulls;
use crate::reconcile::Reconciler;
use crate::registry::{Namespace, Registry};
use crate::snapshots::Snapshots;
use crate::telemetry::logs::LogStore;

/// How often old logs, unreferenced blobs and deleted definitions are swept up.
const SWEEP_PERIOD: Duration = Duration::from_secs(300);

/// How control shall work.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    pub dir: PathBuf,
    pub account: AccountId,
    pub region: Region,
    pub root_key: AccessKey,
    /// The registry's `host:port` in image references, such as `localhost:4566`.
    pub registry_host: String,
    /// Where agents reach it, such as `http://127.0.0.1:4566`.
    pub url: String,
    /// What isolates tasks that do not say.
    pub isolation: Isolation,
    /// State may be thrown away on request (`coracle reset`).
    pub ephemeral: bool,
}

/// Why control cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the state store cannot be opened")]
    Store(#[from] store::Error),
    #[error("the log store cannot be opened")]
    Logs(#[from] telemetry::logs::LogError),
    #[error("the registry cannot be opened")]
    Registry(#[from] registry::OpenError),
    #[error("first start failed")]
    FirstStart(#[from] FirstStartError),
}

/// How long a host may take until it pulls a task's images.
const PULL_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// Access to an image of the built-in registry, whether it is named by this server's address or as
/// in ECR (`ACCOUNT.dkr.ecr.REGION.amazonaws.com`); `None` for the images of other registries.
fn registry_image(registry: &Registry, task: &Task, image: &str) -> Option<RegistryImage> {
    let ecr = format!("{}.dkr.ecr.{}.amazonaws.com/", task.account, task.region);
    let local = image.strip_prefix(&ecr).map(|rest| format!("{}/{rest}", registry.host()));
    let (repository, _) = registry.resolve(local.as_deref().unwrap_or(image))?;
    let namespace = Namespace { account: task.account.clone(), region: task.region.clone() };
    let token = registry.mint_pull_token(&namespace, &repository, PULL_TOKEN_LIFETIME);
    Some(RegistryImage { username: "AWS".to_owned(), password: Secret::new(token.secret()) })
}

/// Control with its stores open.
#[derive(Clone)]
pub struct Control {
    config: ControlConfig,
    store: Store,
    logs: LogStore,
    registry: Registry,
    network: DefaultNetwork,
    ecs: Ecs,
    clock: Clock,
    wake: Arc<Notify>,
    connected: Arc<Notify>,
    pulls: Pulls,
}

impl Control {
    /// Opens the stores, and on first start makes what a new account has: the default network,
    /// within the block that `choose` returns, and the cluster `default`.
    ///
    /// # Errors
    /// A store cannot be opened, read or written.
    pub async fn open(
        config: ControlConfig,
        choose: impl AsyncFnOnce() -> Cidr,
    ) -> Result<Self, ControlError> {
        let store = Store::open_embedded(&config.dir.join("state.db"))?;
        let clock = Clock::system();
        let logs = LogStore::open(&config.dir.join("logs"), clock.clone())?;
        let options = registry::RegistryOptions::new(config.registry_host.clone());
        let registry = Registry::open(&config.dir.join("registry"), store.clone(), options).await?;
        let network = match first_start::default_network(&store).await? {
            Some(network) => network,
            None => {
                let cidr = choose().await;
                first_start::create(&store, &config.account, &config.region, cidr, clock.now()).await?
            }
        };
        let wake = Arc::<Notify>::default();
        let ecs = Ecs {
            store: store.clone(),
            clock: clock.clone(),
            wake: wake.clone(),
            default_subnet: network.subnet.clone(),
            default_security_group: network.security_group.clone(),
            default_isolation: config.isolation,
        };
        Ok(Self {
            config,
            store,
            logs,
            registry,
            network,
            ecs,
            clock,
            wake,
            connected: Arc::default(),
            pulls: Pulls::default(),
        })
    }

    #[must_use]
    pub fn config(&self) -> &ControlConfig {
        &self.config
    }

    #[must_use]
    pub fn now(&self) -> model::Timestamp {
        self.clock.now()
    }

    /// The network that exists from first start.
    #[must_use]
    pub fn default_network(&self) -> &DefaultNetwork {
        &self.network
    }

    /// Asks for the end of every task, in the orderly way (its stop signal, its `stopTimeout`); says how
    /// many there were.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn stop_all_tasks(&self, reason: &str) -> Result<usize, aws_api::Error> {
        api::ecs::stop_all(&self.ecs, reason).await
    }

    /// The HTTP service: all AWS APIs and the registry.
    pub fn router(&self) -> axum::Router {
        let logs = api::logs::Logs { store: self.logs.clone(), clock: self.clock.clone() };
        let services = api::Services { ecs: self.ecs.clone(), logs, registry: self.registry.clone() };
        Endpoint { control: self.clone(), services, registry: self.registry.router() }.router()
    }

    /// What serves host sessions.
    #[must_use]
    pub fn hosts(&self) -> Hosts {
        let (registry, url) = (self.registry.clone(), self.config.url.clone());
        let grant = move |task: &Task| RegistryAccess {
            endpoint: url.clone(),
            images: task
                .spec
                .containers
                .iter()
                .filter_map(|c| Some((c.image.clone(), registry_image(&registry, task, &c.image)?)))
                .collect(),
        };
        Hosts {
            store: self.store.clone(),
            logs: self.logs.clone(),
            clock: self.clock.clone(),
            registry: Arc::new(grant),
            wake: self.wake.clone(),
            connected: self.connected.clone(),
            pulls: self.pulls.clone(),
        }
    }

    /// The tasks' snapshots.
    #[must_use]
    pub fn snapshots(&self) -> Snapshots {
        Snapshots { store: self.store.clone(), clock: self.clock.clone() }
    }

    /// How far pulls are.
    #[must_use]
    pub fn pulls(&self) -> &Pulls {
        &self.pulls
    }

    /// Woken when a host's session has begun.
    #[must_use]
    pub fn connected(&self) -> Arc<Notify> {
        self.connected.clone()
    }

    /// Reconciles and sweeps until `stop` becomes true.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let reconciler = Reconciler {
            store: self.store.clone(),
            logs: self.logs.clone(),
            clock: self.clock.clone(),
            wake: self.wake.clone(),
        };
        tokio::join!(reconciler.run(stop.clone()), self.sweep(stop));
    }

    async fn sweep(&self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(SWEEP_PERIOD);
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.logs.sweep().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "expired logs cannot be removed");
            }
            if let Err(error) = api::ecs::sweep(&self.store, self.clock.now()).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "deleted task definitions cannot be removed"
                );
            }
            if let Err(error) = self.registry.sweep(self.clock.now()).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the registry cannot be swept");
            }
        }
    }
}
