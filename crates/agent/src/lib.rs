//! The agent: runs what control assigns to this host, and reports what it sees.
//!
//! [`Agent::open`] finds what an earlier agent left (sandboxes, links, cgroups, images) and removes
//! what no task needs; [`Agent::run`] serves a session with control. Ending the agent ends no task.

pub mod cgroup;
mod error_chain;
pub mod guest;
pub mod host;
pub mod image;
pub mod instance;
pub mod ledger;
pub mod loop_device;
mod memory_sum;
pub mod net;
pub mod sandbox;
pub mod scratch;
pub mod session;
pub mod slot;
pub mod snapshot;
pub mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use link::AgentEnd;
use model::host::Resources;
use model::network::Cidr;
use model::spec::Isolation;
use model::{Timestamp, VpcId};
use tokio::sync::watch;

use crate::cgroup::{CgroupError, Cgroups};
use crate::image::{ImageOptions, ImageStore, OpenError};
use crate::instance::Instance;
use crate::ledger::{Entry, Ledger, LedgerError};
use crate::net::{NetError, Network};
use crate::sandbox::microvm::MicrovmError;
use crate::sandbox::template::{MachineFiles, Templates};
use crate::slot::{SlotConfig, SlotError, Slots};
use crate::snapshot::{SnapshotError, Snapshots};

/// How long what a killed agent left behind may take to be gone.
const LEFT_OVER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// How an agent shall work.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Tells what this agent makes on the host from what others make.
    pub instance: Instance,
    /// Where ledger, images and sandboxes live.
    pub dir: PathBuf,
    /// The supervisor program.
    pub supervisor: PathBuf,
    pub vpc: VpcId,
    pub vpc_cidr: Cidr,
    /// What may be promised to tasks, overcommitment included.
    pub capacity: Resources,
    /// Sandboxes kept ready.
    pub ready_slots: usize,
    /// What isolates tasks that do not say.
    pub isolation: Isolation,
    /// What microVMs are made from, where this host can run them.
    pub machines: Option<MachineFiles>,
    pub images: ImageOptions,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the ledger cannot be used")]
    Ledger(#[from] LedgerError),
    #[error("the network cannot be set up")]
    Network(#[from] NetError),
    #[error("cgroups cannot be used")]
    Cgroup(#[from] CgroupError),
    #[error("the image store cannot be used")]
    Images(#[from] OpenError),
    #[error("the leases of images cannot be changed")]
    Leases(#[source] std::io::Error),
    #[error("sandboxes cannot be made")]
    Slots(#[from] SlotError),
    #[error("microVMs cannot be made")]
    Microvm(#[from] MicrovmError),
    #[error("the snapshots cannot be looked at")]
    Snapshots(#[from] SnapshotError),
}

/// This machine and what tasks on it share.
pub struct Host {
    pub ledger: Ledger,
    pub network: Network,
    pub cgroups: Cgroups,
    pub images: ImageStore,
    pub slots: Arc<Slots>,
    pub snapshots: Arc<Snapshots>,
    capacity: Resources,
    isolations: Vec<Isolation>,
}

impl Host {
    #[must_use]
    pub fn now(&self) -> Timestamp {
        now()
    }

    fn describe(&self) -> model::host::Host {
        model::host::Host {
            id: self.ledger.host().clone(),
            incarnation: self.ledger.incarnation().to_owned(),
            capacity: self.capacity,
            isolations: self.isolations.clone(),
            architecture: architecture().to_owned(),
            connected_at: now(),
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// This machine's architecture in OCI's words.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Removes what an instance has on this host and no agent serves any more: its sandboxes (a task
/// that still runs ends at once), control groups and network. The state below `dir` stays.
///
/// # Errors
/// Something cannot be removed.
pub async fn remove_from_host(
    dir: &std::path::Path,
    instance: &Instance,
    network: &Network,
) -> Result<(), AgentError> {
    Slots::end_all_below(dir).await?;
    Cgroups::detect(instance)?.teardown(LEFT_OVER_TIMEOUT)?;
    network.teardown().await?;
    Ok(())
}

/// An agent whose host is in order and whose tasks are found again.
pub struct Agent {
    host: Arc<Host>,
    entries: Vec<Entry>,
}

impl Agent {
    /// # Errors
    /// A part of the host cannot be used.
    pub async fn open(config: AgentConfig, network: Network) -> Result<Self, AgentError> {
        let ledger = Ledger::open(&config.dir)?;
        let entries = ledger.entries()?;
        network.ensure_vpc(&config.vpc, config.vpc_cidr).await?;
        let links = entries.iter().filter_map(|entry| entry.link.clone()).collect();
        network.reconcile(links).await?;
        let keep: Vec<_> = entries.iter().filter_map(|entry| entry.slot.clone()).collect();
        let machines = match config.machines {
            None => None,
            Some(files) => {
                let dir = config.dir.join("templates");
                let opening = move || Templates::open(dir, files, slot::TEMPLATE_UID);
                let opened = tokio::task::spawn_blocking(opening).await;
                Some(Arc::new(opened.unwrap_or(Err(MicrovmError::Cancelled))?))
            }
        };
        let isolations = match machines {
            Some(_) => vec![Isolation::Microvm, Isolation::Container],
            None => vec![Isolation::Container],
        };
        let slots = SlotConfig {
            dir: config.dir.clone(),
            supervisor: config.supervisor,
            vpc: config.vpc,
            first_number: u32::from_str_radix(config.instance.as_str(), 16).unwrap_or(0),
            ready: config.ready_slots,
            isolation: config.isolation,
            machines,
        };
        // Left-over sandboxes end before their cgroups can go.
        let slots = Slots::open(slots, network.clone(), &keep).await?;
        let cgroups = Cgroups::detect(&config.instance)?;
        for task in cgroups.list()? {
            if !entries.iter().any(|entry| entry.assignment.task == task) {
                cgroups.open_task(&task).remove(LEFT_OVER_TIMEOUT)?;
            }
        }
        let images = ImageStore::open(config.dir.join("images"), config.images)?;
        for owner in images.lease_owners() {
            if !entries.iter().any(|entry| entry.assignment.task.as_str() == owner) {
                images.release(&owner).map_err(AgentError::Leases)?;
            }
        }
        let snapshots = Snapshots::open(config.dir.join("snapshots"))?;
        let capacity = config.capacity;
        let host = Host { ledger, network, cgroups, images, slots, snapshots, capacity, isolations };
        Ok(Self { host: Arc::new(host), entries })
    }

    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Serves a session until control closes it or `stop` becomes true. Tasks go on running.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub async fn run(self, end: AgentEnd, stop: watch::Receiver<bool>) -> Result<(), LedgerError> {
        let (to_control, from_control) = session::split(end);
        let session = session::Session::open(self.host, to_control, self.entries)?;
        session.run(from_control, stop).await;
        Ok(())
    }
}
