//! The microVM sandbox: which machine a task gets, and bringing it to a supervisor that waits for
//! the task.
//!
//! ```text
//! monitor (jailed, waiting) ── Restore: template, disks, tap ──▶ guest: supervisor, idle
//!                                                                  ▲
//! agent ── DIR/supervisor.sock ── monitor ── vsock ────────────────┘
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::TaskId;
use model::microvm::{
    Devices, Disk, NetworkInterface, PART_ALIGNMENT, Request, RestoreConfig, SUPERVISOR_PORT, Vsock,
    VsockPort,
};
use model::sandbox::{FromSupervisor, Layer, SandboxPhase, SandboxState};
use serde::{Deserialize, Serialize};

use super::connection::{self, Connection, ConnectionError};
use super::monitor::{self, Files, Monitor, MonitorError};
use super::process::ProcessId;
use super::template::{Loading, USERFAULTFD};

/// What the guest's kernel and supervisor need beside the task's own memory, in MiB. The task's
/// containers are held to the task's memory by the guest's cgroup.
pub const OVERHEAD_MIB: u32 = 64;
/// What a monitor may use beside the guest's memory, in MiB: its own, and the kernel's for it.
pub const MONITOR_MIB: u32 = 32;
/// How long a monitor may take to write a machine down: some GiB, to a slow disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a guest may take from its start to an idle supervisor. A real one takes milliseconds
/// from a template and a second at its first boot; an emulated one, in tests, far longer.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Between attempts to reach a guest that is not up yet.
const RETRY: Duration = Duration::from_millis(5);

/// What a task's cgroup on the host may use: the machine, and its monitor.
#[must_use]
pub fn host_memory_mib(task_mib: u32) -> u32 {
    task_mib.saturating_add(OVERHEAD_MIB + MONITOR_MIB)
}

/// Whether the monitor in `dir` runs a machine. One that is writing its machine down, for an agent
/// that is gone, answers when it has done so, and sets the machine going.
pub async fn is_running(dir: &Path) -> bool {
    let Ok(mut monitor) = Monitor::open(dir) else { return false };
    monitor.ask_within(SAVE_TIMEOUT, &Request::Describe, &Files::default()).await.is_ok()
}

/// Writes the machine of the monitor `process` in `dir` down into the two files while it stands still, and does `meanwhile`
/// then, too. Returns with that the time for which it stood still. The machine goes on afterwards,
/// whatever became of it: should this agent be gone, its monitor sees to that.
///
/// # Errors
/// The monitor cannot be reached or cannot write: the disk may be full.
pub async fn save<T, W: Future<Output = T>>(
    dir: &Path,
    process: ProcessId,
    state: &File,
    memory: &File,
    meanwhile: impl FnOnce() -> W,
) -> Result<(T, Duration), MonitorError> {
    let mut monitor = Monitor::open(dir)?;
    let began = tokio::time::Instant::now();
    let done = pause_and_save(&mut monitor, process, state, memory, meanwhile).await?;
    monitor.ask(&Request::Resume, &Files::default()).await?;
    Ok((done, began.elapsed()))
}

/// As [`save`], but the machine stands still afterwards, for as long as the monitor is connected to.
pub(super) async fn pause_and_save<T, W: Future<Output = T>>(
    monitor: &mut Monitor,
    process: ProcessId,
    state: &File,
    memory: &File,
    meanwhile: impl FnOnce() -> W,
) -> Result<T, MonitorError> {
    let mut files = Files::default();
    let pages = process.open("pagemap").map_err(MonitorError::Connect)?;
    let request = Request::Snapshot {
        state: files.attach(state)?,
        memory: files.attach(memory)?,
        pages: Some(files.attach(&pages)?),
    };
    monitor.ask(&Request::Pause, &Files::default()).await?;
    let (saved, done) = tokio::join!(monitor.ask_within(SAVE_TIMEOUT, &request, &files), meanwhile());
    saved?;
    Ok(done)
}

/// Why a microVM does not come up.
#[derive(Debug, thiserror::Error)]
pub enum MicrovmError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("the microVM's supervisor cannot be reached")]
    Connection(#[from] ConnectionError),
    #[error("the microVM's supervisor was not ready within {} seconds", BOOT_TIMEOUT.as_secs())]
    NotReady,
    #[error("the microVM's supervisor is not as it was written down: {0}")]
    NotAsExpected(String),
    #[error("the microVM's monitor cannot be started or ended")]
    Process(#[from] super::process::ProcessError),
    #[error("a waiting task gave up")]
    Cancelled,
}

impl MicrovmError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    pub vcpus: u8,
    pub memory_mib: u32,
}

impl Size {
    /// A machine for a task of this size: as many processors as it has begun vCPUs (the cgroup of
    /// its monitor holds the task to the fraction), and its memory with what the guest needs itself.
    #[must_use]
    pub fn of(cpu_units: u32, memory_mib: u32) -> Self {
        let vcpus = u8::try_from(cpu_units.div_ceil(1024)).unwrap_or(u8::MAX).clamp(1, 16);
        Self { vcpus, memory_mib: memory_mib.saturating_add(OVERHEAD_MIB) }
    }
}

/// The image layers of a task as the parts of one disk, each layer once.
#[derive(Debug, Default)]
pub struct LayerDisk {
    parts: Vec<PathBuf>,
    /// Where each part lies.
    places: HashMap<PathBuf, Layer>,
    end: u64,
}

impl LayerDisk {
    /// The files that it consists of.
    #[must_use]
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// The place of an EROFS file of `length` bytes in the disk; it is added when it is new.
    pub fn place(&mut self, file: &Path, length: u64) -> Layer {
        if let Some(place) = self.places.get(file) {
            return place.clone();
        }
        let place = Layer::Extent { offset: self.end, length };
        self.end += length.next_multiple_of(PART_ALIGNMENT);
        self.parts.push(file.to_owned());
        self.places.insert(file.to_owned(), place.clone());
        place
    }
}

/// What stands behind a machine's devices.
#[derive(Debug)]
pub(super) struct Backing {
    pub layers: Vec<File>,
    pub scratch: Option<File>,
    pub tap: Option<OwnedFd>,
    pub supervisor: UnixListener,
}

impl Backing {
    /// No task's: nothing but the way to the supervisor.
    pub fn empty(dir: &Path) -> Result<Self, MicrovmError> {
        let path = dir.join(connection::SOCKET);
        let supervisor = connection::listen(dir).map_err(MicrovmError::io("listen on", &path))?;
        Ok(Self { layers: Vec::new(), scratch: None, tap: None, supervisor })
    }

    /// The devices of every machine: two disks, a network interface and a vsock.
    pub fn devices<'a>(&'a self, mac: [u8; 6], files: &mut Files<'a>) -> Result<Devices, MonitorError> {
        let attach = |files: &mut Files<'a>, list: &'a [File]| {
            list.iter().map(|file| files.attach(file)).collect::<Result<Vec<_>, _>>()
        };
        let layers = Disk { parts: attach(files, &self.layers)?, read_only: true, rate_limit: None };
        let scratch = attach(files, self.scratch.as_slice())?;
        let scratch = Disk { parts: scratch, read_only: false, rate_limit: None };
        let tap = self.tap.as_ref().map(|tap| files.attach(tap)).transpose()?;
        let network = NetworkInterface { tap, mac, mtu: None, transmit_limit: None, receive_limit: None };
        let port = VsockPort { listener: files.attach(&self.supervisor)?, port: SUPERVISOR_PORT };
        Ok(Devices {
            disks: vec![layers, scratch],
            network: Some(network),
            vsock: Some(Vsock { ports: vec![port] }),
        })
    }
}

/// What a task's machine is given.
#[derive(Debug)]
pub struct TaskDevices {
    /// The parts of its disk of layers.
    pub layers: Vec<PathBuf>,
    pub scratch: PathBuf,
    pub tap: OwnedFd,
    pub mac: [u8; 6],
}

/// A machine to copy.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub state: &'a File,
    pub memory: &'a File,
    /// The task that its supervisor runs; a template's is idle.
    pub task: Option<&'a TaskId>,
    pub loading: Loading,
}

/// Makes the waiting monitor in `dir` run a copy of `origin`, and waits for its supervisor.
///
/// # Errors
/// A file cannot be opened, or the machine does not come up.
pub async fn start(
    dir: &Path,
    monitor: &mut Monitor,
    origin: Origin<'_>,
    task: TaskDevices,
) -> Result<Connection, MicrovmError> {
    let mut backing = Backing::empty(dir)?;
    for path in &task.layers {
        backing.layers.push(File::open(path).map_err(MicrovmError::io("open", path))?);
    }
    let scratch = File::options().read(true).write(true).open(&task.scratch);
    backing.scratch = Some(scratch.map_err(MicrovmError::io("open", &task.scratch))?);
    backing.tap = Some(task.tap);

    let faults = match origin.loading {
        Loading::Mapped => None,
        Loading::OnDemand => {
            let path = Path::new(USERFAULTFD);
            Some(File::open(path).map_err(MicrovmError::io("open", path))?)
        }
    };

    let mut files = Files::default();
    let devices = backing.devices(task.mac, &mut files)?;
    let request = Request::Restore(Box::new(RestoreConfig {
        state: files.attach(origin.state)?,
        memory: files.attach(origin.memory)?,
        devices,
        console: None,
        new_identity: true,
        userfaultfd: faults.as_ref().map(|faults| files.attach(faults)).transpose()?,
    }));
    monitor.ask(&request, &files).await?;
    tracing::debug!(dir = %dir.display(), "restored a microVM");
    await_supervisor(dir, origin.task).await
}

/// Connects to the supervisor in the machine of `dir`, which runs `task` or is idle, as soon as it
/// listens.
pub(super) async fn await_supervisor(dir: &Path, task: Option<&TaskId>) -> Result<Connection, MicrovmError> {
    let expected = |state: &SandboxState| match task {
        Some(_) => state.task.as_ref() == task,
        None => state.phase == SandboxPhase::Idle,
    };
    let deadline = tokio::time::Instant::now() + BOOT_TIMEOUT;
    loop {
        let attempt = async {
            let mut connection = Connection::open(dir).await?;
            let first = connection.receive().await?;
            Ok::<_, ConnectionError>((connection, first))
        };
        match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok((connection, FromSupervisor::State { state }))) if expected(&state) => {
                return Ok(connection);
            }
            Ok(Ok((_, other))) => return Err(MicrovmError::NotAsExpected(format!("{other:?}"))),
            Err(_) => return Err(MicrovmError::NotReady),
            Ok(Err(error)) => {
                if let Some(ended) = monitor::ended(dir) {
                    return Err(MonitorError::Ended(ended).into());
                }
                // Refused by the guest as long as its supervisor does not listen.
                if tokio::time::Instant::now() > deadline {
                    return Err(error.into());
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_task() {
        assert_eq!(Size::of(256, 512), Size { vcpus: 1, memory_mib: 576 });
        assert_eq!(Size::of(1024, 2048).vcpus, 1);
        assert_eq!(Size::of(1025, 2048).vcpus, 2);
        assert_eq!(Size::of(16384, 122_880), Size { vcpus: 16, memory_mib: 122_944 });
    }

    #[test]
    fn a_layer_is_in_the_disk_once() {
        let mut disk = LayerDisk::default();
        let base = disk.place(Path::new("/base"), 5000);
        let app = disk.place(Path::new("/app"), 4096);
        assert_eq!(base, Layer::Extent { offset: 0, length: 5000 });
        assert_eq!(app, Layer::Extent { offset: 8192, length: 4096 });
        assert_eq!(disk.place(Path::new("/base"), 5000), base);
        assert_eq!(disk.parts, [PathBuf::from("/base"), PathBuf::from("/app")]);
    }
}
