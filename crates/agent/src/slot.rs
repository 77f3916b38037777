//! Slots: sandboxes made ahead of their task, so that a start does not pay for them.
//!
//! A slot is a process (a supervisor in its namespaces, or a microVM's monitor in its jail), a scratch
//! disk and a network link that waits for an address. Slots live in `DIR/<number>/`; the number also
//! gives the range of host user ids that the sandbox's users are mapped to (a monitor runs as its
//! first), so no two sandboxes share one.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::VpcId;
use model::sandbox::{FromSupervisor, SandboxPhase};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use model::spec::Isolation;

use crate::net::{NetError, Network, PreparedLink, PreparedTap};
use crate::sandbox::connection::{Connection, ConnectionError};
use crate::sandbox::monitor::{Monitor, MonitorError};
use crate::sandbox::process::{self, ProcessError, ProcessId};
use crate::sandbox::template::Templates;
use crate::scratch::{ScratchDir, ScratchError};

/// Users of sandbox N are host users from `FIRST_UID + N × UIDS_EACH` on: above what system
/// accounts and the usual subuid ranges use.
const FIRST_UID: u32 = 0x1000_0000;
const UIDS_EACH: u32 = 0x1_0000;
/// The user of monitors that make templates: below those of sandboxes.
pub const TEMPLATE_UID: u32 = FIRST_UID - 1;
/// As many sandboxes as there are user id ranges below 2^32.
const MAX_SLOTS: u32 = (u32::MAX - FIRST_UID) / UIDS_EACH;
/// Slots that are made at the same time.
const MAKERS: usize = 2;
/// The size of the disk that slots have ready, Fargate's default.
pub const DEFAULT_SCRATCH_GIB: u32 = 20;

/// Why a slot cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the scratch disk cannot be made")]
    Scratch(#[from] ScratchError),
    #[error("the sandbox's process cannot be started")]
    Process(#[from] ProcessError),
    #[error("the microVM's monitor cannot be reached")]
    Monitor(#[from] MonitorError),
    #[error("this host runs no microVMs")]
    NoMicrovms,
    #[error("the supervisor cannot be reached")]
    Connection(#[from] ConnectionError),
    #[error("the network link cannot be made")]
    Network(#[from] NetError),
    #[error("all {MAX_SLOTS} sandboxes of this host are in use")]
    Exhausted,
    #[error("no slot can be made, as the agent is stopping")]
    Stopping,
}

/// What finds a slot again after a restart of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    pub number: u32,
    pub dir: PathBuf,
    pub scratch: PathBuf,
    /// The supervisor, or the monitor.
    pub process: ProcessId,
    #[serde(default)]
    pub isolation: Isolation,
}

/// A sandbox that waits for its task.
pub struct Slot {
    pub record: SlotRecord,
    pub interior: Interior,
}

/// What waits in a slot.
pub enum Interior {
    Container {
        supervisor: Connection,
        link: PreparedLink,
    },
    /// A monitor without a machine: its size is the task's.
    Microvm {
        monitor: Monitor,
        tap: PreparedTap,
    },
}

/// What slots are made from.
pub struct SlotConfig {
    /// Sandboxes live in `slots/` below it, their disks in `scratch/`.
    pub dir: PathBuf,
    pub supervisor: PathBuf,
    pub vpc: VpcId,
    /// Where numbers begin, modulo the highest: agents on one machine that begin apart give their
    /// sandboxes user ids apart.
    pub first_number: u32,
    /// Slots kept ready, and what they isolate with; others are made when they are wanted. With
    /// none, no task of the default size can start.
    pub ready: usize,
    pub isolation: Isolation,
    /// What microVMs are made from, on a host that can run them.
    pub machines: Option<Arc<Templates>>,
}

/// Makes slots and keeps some ready.
pub struct Slots {
    config: SlotConfig,
    dir: PathBuf,
    scratch: ScratchDir,
    network: Network,
    numbers: Mutex<Numbers>,
    ready: tokio::sync::Mutex<mpsc::Receiver<Slot>>,
}

struct Numbers {
    used: BTreeSet<u32>,
    next: u32,
}

impl Slots {
    /// Ends every sandbox that is not in `keep`, and begins to make slots ready.
    ///
    /// # Errors
    /// The slots' directory cannot be used, or a left-over sandbox does not end.
    pub async fn open(
        config: SlotConfig,
        network: Network,
        keep: &[SlotRecord],
    ) -> Result<Arc<Self>, SlotError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SlotError::Io { action, path, source }
        };
        let dir = config.dir.join("slots");
        std::fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        for (dir, process) in process::find_below(&dir) {
            if !keep.iter().any(|kept| kept.dir == dir) {
                process.kill().await?;
            }
        }
        let mut numbers = Numbers { used: BTreeSet::new(), next: config.first_number % MAX_SLOTS };
        for entry in std::fs::read_dir(&dir).map_err(io("read", &dir))? {
            let path = entry.map_err(io("read", &dir))?.path();
            if !keep.iter().any(|kept| kept.dir == path) {
                std::fs::remove_dir_all(&path).map_err(io("remove", &path))?;
            }
        }
        let scratch = ScratchDir::open(&config.dir.join("scratch"))?;
        for name in scratch.list()? {
            if !keep.iter().any(|kept| kept.number.to_string() == name) {
                scratch.remove(&name)?;
            }
        }
        for kept in keep {
            numbers.used.insert(kept.number);
            numbers.next = (kept.number + 1) % MAX_SLOTS;
        }
        // A rendezvous beyond the makers' own slots: they hold one each while the queue is full.
        let (sender, receiver) = mpsc::channel(config.ready.saturating_sub(MAKERS).max(1));
        let slots = Arc::new(Self {
            config,
            dir,
            scratch,
            network,
            numbers: Mutex::new(numbers),
            ready: tokio::sync::Mutex::new(receiver),
        });
        let makers = if slots.config.ready == 0 { 0 } else { MAKERS };
        for _ in 0..makers {
            tokio::spawn(slots.clone().keep_ready(sender.clone()));
        }
        Ok(slots)
    }

    /// Ends every sandbox below the agent's directory `dir`, those of tasks too.
    ///
    /// # Errors
    /// One does not end.
    pub(crate) async fn end_all_below(dir: &Path) -> Result<(), SlotError> {
        for (_, process) in process::find_below(&dir.join("slots")) {
            process.kill().await?;
        }
        Ok(())
    }

    async fn keep_ready(self: Arc<Self>, ready: mpsc::Sender<Slot>) {
        let mut pause = Duration::from_millis(100);
        loop {
            let Ok(place) = ready.reserve().await else { return };
            match self.make(self.config.isolation, DEFAULT_SCRATCH_GIB).await {
                Ok(slot) => {
                    place.send(slot);
                    pause = Duration::from_millis(100);
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "no sandbox can be made ready");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// What microVMs are made from, on a host that can run them.
    #[must_use]
    pub fn machines(&self) -> Option<&Arc<Templates>> {
        self.config.machines.as_ref()
    }

    /// A slot that isolates in this way, with a scratch disk of `gib` GiB.
    ///
    /// # Errors
    /// None is ready and none can be made.
    pub async fn take(&self, isolation: Isolation, gib: u32) -> Result<Slot, SlotError> {
        if (isolation, gib) == (self.config.isolation, DEFAULT_SCRATCH_GIB) {
            loop {
                let slot = self.ready.lock().await.recv().await.ok_or(SlotError::Stopping)?;
                if slot.record.process.is_alive() {
                    return Ok(slot);
                }
                tracing::warn!(slot = slot.record.number, "a waiting sandbox has died; taking another");
                self.discard(&slot.record).await?;
            }
        }
        self.make(isolation, gib).await
    }

    /// Ends the slots that wait for a task, and makes no more.
    ///
    /// # Errors
    /// One does not end.
    pub async fn close(&self) -> Result<(), SlotError> {
        let mut ready = self.ready.lock().await;
        ready.close();
        while let Some(slot) = ready.recv().await {
            self.discard(&slot.record).await?;
        }
        Ok(())
    }

    async fn make(&self, isolation: Isolation, gib: u32) -> Result<Slot, SlotError> {
        let number = self.number()?;
        let dir = self.dir.join(number.to_string());
        let made = self.make_in(isolation, number, &dir, gib).await;
        if made.is_err() {
            for (found, process) in process::find_below(&self.dir) {
                if found == dir {
                    process.kill().await?;
                }
            }
            self.remove_dir(number, &dir)?;
        }
        made
    }

    async fn make_in(
        &self,
        isolation: Isolation,
        number: u32,
        dir: &Path,
        gib: u32,
    ) -> Result<Slot, SlotError> {
        std::fs::create_dir_all(dir).map_err(|source| SlotError::Io {
            action: "create",
            path: dir.to_owned(),
            source,
        })?;
        let disks = self.scratch.clone();
        let making = move || disks.create(&number.to_string(), gib.into());
        let disk = tokio::task::spawn_blocking(making).await.map_err(|_| SlotError::Stopping)??.path;
        let uid_base = FIRST_UID + number * UIDS_EACH;
        let (process, interior) = match isolation {
            Isolation::Container => self.make_container(dir, uid_base, &disk).await?,
            Isolation::Microvm => self.make_microvm(dir, uid_base).await?,
        };
        let record = SlotRecord { number, dir: dir.to_owned(), scratch: disk, process, isolation };
        Ok(Slot { record, interior })
    }

    async fn make_container(
        &self,
        dir: &Path,
        uid_base: u32,
        disk: &Path,
    ) -> Result<(ProcessId, Interior), SlotError> {
        let process = process::start_supervisor(&self.config.supervisor, dir, uid_base, disk).await?;
        let mut supervisor = Connection::open(dir).await?;
        match supervisor.receive().await? {
            FromSupervisor::State { state } if state.phase == SandboxPhase::Idle => {}
            other => {
                return Err(SlotError::Process(ProcessError::NotReady(format!("it began with {other:?}"))));
            }
        }
        let netns = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
        let opened = std::fs::File::open(&netns);
        let netns =
            OwnedFd::from(opened.map_err(|source| SlotError::Io { action: "open", path: netns, source })?);
        let link = self.network.prepare(&self.config.vpc, netns).await?;
        Ok((process, Interior::Container { supervisor, link }))
    }

    async fn make_microvm(&self, dir: &Path, uid: u32) -> Result<(ProcessId, Interior), SlotError> {
        let machines = self.config.machines.as_ref().ok_or(SlotError::NoMicrovms)?;
        let files = machines.files();
        let process = process::start_monitor(&files.jailer, &files.monitor, dir, uid).await?;
        let monitor = Monitor::open(dir)?;
        let tap = self.network.prepare_tap(&self.config.vpc).await?;
        Ok((process, Interior::Microvm { monitor, tap }))
    }

    /// Ends a sandbox, whatever it does, and removes what it had on disk.
    ///
    /// # Errors
    /// It does not end, or its directory cannot be removed.
    pub async fn discard(&self, record: &SlotRecord) -> Result<(), SlotError> {
        record.process.kill().await?;
        self.remove_dir(record.number, &record.dir)
    }

    fn remove_dir(&self, number: u32, dir: &Path) -> Result<(), SlotError> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SlotError::Io { action: "remove", path: dir.to_owned(), source: error });
            }
            _ => {}
        }
        self.scratch.remove(&number.to_string())?;
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).used.remove(&number);
        Ok(())
    }

    /// Numbers go round, so that a user id range is not reused while anything of its last sandbox
    /// could be about.
    fn number(&self) -> Result<u32, SlotError> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let start = numbers.next;
        let free = (start..MAX_SLOTS).chain(0..start).find(|n| !numbers.used.contains(n));
        let number = free.ok_or(SlotError::Exhausted)?;
        numbers.used.insert(number);
        numbers.next = (number + 1) % MAX_SLOTS;
        Ok(number)
    }
}
