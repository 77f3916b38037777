//! From assignment to running containers.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::try_join_all;
use model::microvm::SCRATCH_DEVICE;
use model::sandbox::{GuestSetup, Layer, SandboxContainer, SandboxSpec};
use model::snapshot::SnapshotSource;
use model::spec::Isolation;

use super::snapshot::not_restored;
use super::*;
use crate::cgroup::{CgroupError, Limits};
use crate::error_chain::chain;
use crate::image::{Auth, Image, PullProgress, PullRequest, RegistryEndpoint};
use crate::ledger::MachineRecord;
use crate::net::ROUTER_MAC;
use crate::sandbox::microvm::{self, LayerDisk, MicrovmError, Origin, Size, TaskDevices};
use crate::sandbox::monitor::Monitor;
use crate::slot::{Interior, Slot, SlotError, SlotRecord};

/// A sandbox on the network, before it knows its task.
enum Waiting {
    Supervisor(Connection),
    Monitor { monitor: Monitor, tap: OwnedFd },
}

/// How often a supervisor that an earlier agent left is asked how it is, before it is given up.
const FIRST_WORDS_ATTEMPTS: u32 = 20;

/// What an earlier agent left of a task's sandbox.
enum Found {
    /// Its supervisor is there.
    Running(Connection),
    /// Nothing of the task has run in it, and it is of no use.
    Unused,
}

/// A task that does not start, and why; in `stoppedReason`'s words.
pub(super) fn failed(reason: impl Into<String>) -> StopCause {
    StopCause { code: StopCode::TaskFailedToStart, reason: reason.into() }
}

impl TaskDriver {
    /// Brings the task to a supervisor that has been told to run it: from the start, or from where
    /// an earlier agent left it.
    pub(super) async fn boot(&mut self) -> Result<Connection, StopCause> {
        if !self.entry.unused
            && let (Some(slot), Some(_)) = (self.entry.slot.clone(), self.entry.link.clone())
            && let Found::Running(connection) = self.resume(&slot).await?
        {
            return Ok(connection);
        }
        if self.entry.slot.is_some() || self.entry.link.is_some() {
            // Chosen, and the agent died before anything ran in it; this one may, too.
            self.entry.unused = true;
            self.record()?;
            self.take_off_host().await.map_err(|error| failed(chain(&error)))?;
            (self.entry.slot, self.entry.link, self.entry.machine) = (None, None, None);
            self.entry.unused = false;
        }
        if let Some(cause) = self.stop.clone() {
            return Err(cause);
        }
        let (host, uplink) = (self.host.clone(), self.uplink.clone());
        let assignment = self.entry.assignment.clone();
        let spec = &assignment.spec;
        let images = async {
            // A snapshot has the images' layers.
            let pulled = if spec.snapshot.is_some() { &[] } else { spec.containers.as_slice() };
            let pulls = pulled.iter().map(|c| pull(&host, &uplink, &assignment, &c.name, &c.image));
            try_join_all(pulls).await
        };
        tokio::pin!(images);
        // Pulling does not wait for the network interface, nor the other way round.
        let mut early = None;
        let slot = self
            .unless_stopped(async {
                let taking = host.slots.take(spec.isolation, spec.ephemeral_storage_gib);
                tokio::pin!(taking);
                tokio::select! {
                    biased;
                    slot = &mut taking => slot,
                    done = &mut images => {
                        early = Some(done);
                        taking.await
                    }
                }
            })
            .await?;
        self.stage("has a sandbox");
        let waiting = self.attach(slot).await?;
        self.stage("is on the network");
        self.report.advance(TaskStatus::Pending, self.now());
        if early.is_none() {
            self.publish().await;
        }
        let pulled = match early {
            Some(done) => done,
            None => self.unless_stopped(images).await?,
        };
        let images = pulled.map_err(|(container, reason)| {
            self.report.container_failed(&container, reason.clone());
            failed(reason)
        })?;
        self.report.advance(TaskStatus::Activating, self.now());
        for (container, image) in spec.containers.iter().zip(&images) {
            self.report.image(&container.name, image.manifest_digest.to_string());
            self.host.images.lease(image, self.report.task().as_str()).map_err(|e| failed(chain(&e)))?;
        }
        self.stage("has its images");
        let starting = match (waiting, &spec.snapshot) {
            (Waiting::Supervisor(connection), None) => self
                .sandbox_spec(&images)
                .map(|spec| (connection, ToSupervisor::Run { spec: Box::new(spec) })),
            (Waiting::Supervisor(_), Some(_)) => Err(not_restored(&SlotError::NoMicrovms)),
            (Waiting::Monitor { monitor, tap }, None) => self.start_machine(monitor, tap, &images).await,
            (Waiting::Monitor { monitor, tap }, Some(source)) => {
                self.restore_machine(monitor, tap, source).await
            }
        };
        let (mut connection, mut first_words) =
            starting.map_err(|cause| if let Some(asked) = self.stop.clone() { asked } else { cause })?;
        // At the last moment: a guest's clock is as late as this is on its way.
        match &mut first_words {
            ToSupervisor::Run { spec } => spec.guest.iter_mut().for_each(|guest| guest.now = self.now()),
            ToSupervisor::Adopt { identity } => identity.guest.now = self.now(),
            _ => {}
        }
        connection.send(&first_words).await.map_err(|error| failed(chain(&error)))?;
        self.stage("is told to its supervisor");
        Ok(connection)
    }

    /// For the log of who wants to know what a start is spent on.
    fn stage(&self, reached: &'static str) {
        tracing::debug!(task = %self.entry.assignment.task, "the task {reached}");
    }

    /// Has the monitor run a copy of the machine that a snapshot is of. No process of the task runs in it
    /// until its supervisor has heard the task's identity.
    async fn restore_machine(
        &mut self,
        mut monitor: Monitor,
        tap: OwnedFd,
        source: &SnapshotSource,
    ) -> Result<(Connection, ToSupervisor), StopCause> {
        let (saved, layers) = self.open_snapshot(source).await?;
        let identity = Box::new(self.identity()?);
        let (slot, templates) = (self.entry.slot.clone(), self.host.slots.machines());
        let (Some(slot), Some(loading)) = (slot, templates.map(|templates| templates.files().loading)) else {
            return Err(not_restored(&SlotError::NoMicrovms));
        };
        let (size, programs) = (saved.description.size, saved.description.programs.clone());
        self.entry.machine = Some(MachineRecord { size, programs, layers: layers.clone() });
        self.record()?;
        let (mac, scratch) = (self.entry.assignment.eni.mac.0, slot.scratch.clone());
        let devices = TaskDevices { layers, scratch, tap, mac };
        let origin = Origin {
            state: &saved.state,
            memory: &saved.memory,
            task: Some(&saved.description.task),
            loading,
        };
        // What goes on in it is a tenant's: even the kernel may be, in a privileged task.
        self.enter_cgroup(&slot).await.map_err(|error| not_restored(&error))?;
        let starting = microvm::start(&slot.dir, &mut monitor, origin, devices);
        let connection = self.unless_stopped(starting).await?.map_err(|error| not_restored(&error))?;
        Ok((connection, ToSupervisor::Adopt { identity }))
    }

    /// Holds the machine's monitor to the task's limits. In a copy of a template not before nothing but the
    /// task's work is left to do: a fraction of a processor is for that, and nothing of the task has run
    /// in it yet.
    async fn enter_cgroup(&self, slot: &SlotRecord) -> Result<(), CgroupError> {
        let cgroup = self.host.cgroups.open_task(&self.entry.assignment.task);
        let pid = slot.process.pid;
        tokio::task::spawn_blocking(move || cgroup.add_pid(pid)).await.unwrap_or(Ok(()))
    }

    /// Has the monitor run a machine with the task's disks and interface.
    async fn start_machine(
        &mut self,
        mut monitor: Monitor,
        tap: OwnedFd,
        images: &[Arc<Image>],
    ) -> Result<(Connection, ToSupervisor), StopCause> {
        let initialization = |error: &dyn std::error::Error| {
            failed(format!("ResourceInitializationError: failed to start the microVM: {}", chain(error)))
        };
        let (host, assignment) = (self.host.clone(), self.entry.assignment.clone());
        let slot = self.entry.slot.clone();
        let (Some(slot), Some(templates)) = (slot, host.slots.machines()) else {
            return Err(initialization(&SlotError::NoMicrovms));
        };
        let mut disk = LayerDisk::default();
        let mut layers = Vec::with_capacity(images.len());
        for image in images {
            let files = host.images.erofs(image).await.map_err(|error| initialization(&error))?;
            layers.push(files.iter().map(|file| disk.place(&file.path, file.length)).collect::<Vec<_>>());
        }
        let mut sandbox = self.sandbox_spec(images)?;
        for (container, layers) in sandbox.containers.iter_mut().zip(layers) {
            container.layers = layers;
        }
        let size = Size::of(assignment.spec.cpu_units, assignment.spec.memory_mib);
        let template = self.unless_stopped(templates.get(size)).await?.map_err(|e| initialization(&e))?;
        self.stage("has its disks and a template");
        let (mac, scratch) = (assignment.eni.mac.0, slot.scratch.clone());
        let layers = disk.parts().to_vec();
        self.entry.machine =
            Some(MachineRecord { size, programs: templates.programs().clone(), layers: layers.clone() });
        self.record()?;
        let devices = TaskDevices { layers, scratch, tap, mac };
        let origin = Origin {
            state: &template.state,
            memory: &template.memory,
            task: None,
            loading: template.loading,
        };
        let starting = microvm::start(&slot.dir, &mut monitor, origin, devices);
        match self.unless_stopped(starting).await? {
            Ok(connection) => {
                self.stage("has a machine with an idle supervisor");
                self.enter_cgroup(&slot).await.map_err(|error| initialization(&error))?;
                Ok((connection, ToSupervisor::Run { spec: Box::new(sandbox) }))
            }
            Err(error) => {
                if matches!(error, MicrovmError::Monitor(_)) {
                    // Of another processor, perhaps, or damaged: the next task has it made anew.
                    templates.discard(size, &template).await.map_err(|error| initialization(&error))?;
                }
                Err(initialization(&error))
            }
        }
    }

    /// Waits for `work`, or for a request to stop the task.
    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, StopCause> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                command = self.commands.recv() => match command {
                    Some(Command::Stop(cause)) => {
                        self.stop = Some(cause.clone());
                        return Err(cause);
                    }
                    Some(Command::Forget) => {
                        self.forget = true;
                        return Err(forgotten());
                    }
                    Some(Command::Repeat) => self.publish().await,
                    Some(Command::Snapshot(id)) => self.no_snapshot(id).await,
                    Some(Command::LogsStored { .. }) => {}
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Records the slot, gives its link the task's address, and records that.
    async fn attach(&mut self, slot: Result<Slot, SlotError>) -> Result<Waiting, StopCause> {
        let slot = slot.map_err(|error| failed(format!("ResourceInitializationError: {}", chain(&error))))?;
        self.entry.slot = Some(slot.record);
        self.record()?;
        let (network, eni) = (&self.host.network, &self.entry.assignment.eni);
        let attached = match slot.interior {
            Interior::Container { supervisor, link } => {
                network.attach(link, eni).await.map(|link| (link, Waiting::Supervisor(supervisor)))
            }
            Interior::Microvm { monitor, tap } => {
                let attached = network.attach_tap(tap, eni).await;
                attached.map(|(link, tap)| (link, Waiting::Monitor { monitor, tap }))
            }
        };
        let (link, waiting) = attached.map_err(|error| {
            failed(format!(
                "ResourceInitializationError: failed to attach the network interface: {}",
                chain(&error)
            ))
        })?;
        self.entry.link = Some(link);
        self.record()?;
        Ok(waiting)
    }

    fn record(&self) -> Result<(), StopCause> {
        self.host
            .ledger
            .put(&self.entry)
            .map_err(|e| failed(format!("ResourceInitializationError: {}", chain(&e))))
    }

    /// An earlier agent chose the sandbox and attached it; its supervisor tells the rest.
    async fn resume(&mut self, slot: &SlotRecord) -> Result<Found, StopCause> {
        if !slot.process.is_alive() {
            return Err(self.found_dead().await);
        }
        if slot.isolation == Isolation::Microvm && !microvm::is_running(&slot.dir).await {
            return Ok(Found::Unused);
        }
        let Some(state) = self.supervisors_state(slot).await? else { return Ok(Found::Unused) };
        self.report.take_in(&state, self.now());
        self.publish().await;
        // Said again by the supervisor on a new connection, with the unacknowledged logs.
        let mut connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => match self.reconnect(&error).await {
                Some(connection) => connection,
                None => return Err(self.found_dead().await),
            },
        };
        if slot.isolation == Isolation::Microvm {
            // The earlier agent may have been making a snapshot.
            drop(connection.send(&ToSupervisor::Thaw).await);
        }
        Ok(Found::Running(connection))
    }

    /// What the supervisor says first, if it is of this task: of no task yet, or still of the one that it is a
    /// copy of, it is of no use. Commands wait meanwhile: they are for a supervisor.
    async fn supervisors_state(&mut self, slot: &SlotRecord) -> Result<Option<SandboxState>, StopCause> {
        for _ in 0..FIRST_WORDS_ATTEMPTS {
            let asking = async { Connection::open(&slot.dir).await?.receive().await };
            let error = match tokio::time::timeout(END_PATIENCE, asking).await {
                Ok(Ok(FromSupervisor::State { state })) => {
                    return Ok((state.task.as_ref() == Some(self.report.task())).then_some(state));
                }
                Ok(Ok(_)) => ConnectionError::OutOfTurn,
                Ok(Err(error)) => error,
                Err(_) => break,
            };
            if self.reconnect(&error).await.is_none() {
                return Err(self.found_dead().await);
            }
        }
        self.kill_sandbox().await;
        Err(self.found_dead().await)
    }

    /// The sandbox that an earlier agent left has ended, or was ended as nobody in it answers. What has been
    /// asked of the task in the meantime says why.
    async fn found_dead(&mut self) -> StopCause {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop(cause) => self.stop = Some(cause),
                Command::Forget => self.forget = true,
                Command::Snapshot(id) => self.no_snapshot(id).await,
                Command::Repeat | Command::LogsStored { .. } => {}
            }
        }
        self.sandbox_died();
        self.stop.clone().unwrap_or_else(|| failed("the task's sandbox was killed"))
    }

    /// What the supervisor is told, and the limits of the whole task on this host.
    pub(super) fn sandbox_spec(&self, images: &[Arc<Image>]) -> Result<SandboxSpec, StopCause> {
        let assignment = self.entry.assignment.clone();
        let spec = &assignment.spec;
        let is_guest = spec.isolation == Isolation::Microvm;
        let memory_mib = if is_guest { microvm::host_memory_mib(spec.memory_mib) } else { spec.memory_mib };
        let limits = Limits::of(spec.cpu_units, memory_mib);
        let cgroup = self.host.cgroups.create_task(&assignment.task, &limits).map_err(|error| {
            failed(format!("ResourceInitializationError: failed to set the task's limits: {}", chain(&error)))
        })?;
        let scratch = match &self.entry.slot {
            Some(slot) if !is_guest => slot.scratch.clone(),
            _ => PathBuf::from(SCRATCH_DEVICE),
        };
        let containers = spec
            .containers
            .iter()
            .zip(images)
            .map(|(container, image)| SandboxContainer {
                spec: container.clone(),
                image: image.config.to_model(),
                layers: image.layers.iter().map(|path| Layer::Directory { path: path.clone() }).collect(),
                extra_environment: vec![
                    ("AWS_REGION".to_owned(), assignment.region.to_string()),
                    ("AWS_DEFAULT_REGION".to_owned(), assignment.region.to_string()),
                ],
            })
            .collect();
        Ok(SandboxSpec {
            task: assignment.task.clone(),
            hostname: assignment.eni.private_dns_name.clone(),
            address: assignment.eni.address,
            resolver: assignment.eni.resolver,
            search_domain: assignment
                .eni
                .private_dns_name
                .split_once('.')
                .map(|(_, domain)| domain.to_owned()),
            cgroup_parent: (!is_guest).then(|| cgroup.path().to_string_lossy().into_owned()),
            scratch,
            volumes: spec.volumes.clone(),
            share_pid_namespace: spec.share_pid_namespace,
            containers,
            guest: is_guest.then(|| self.guest_setup()).transpose()?,
        })
    }
}

impl TaskDriver {
    fn guest_setup(&self) -> Result<GuestSetup, StopCause> {
        let (eni, spec) = (&self.entry.assignment.eni, &self.entry.assignment.spec);
        let limits = Limits::of(spec.cpu_units, spec.memory_mib);
        let mtu = self.host.network.mtu(&eni.vpc).map_err(|error| failed(chain(&error)))?;
        Ok(GuestSetup {
            mac: eni.mac.0,
            gateway: eni.gateway,
            gateway_mac: ROUTER_MAC.0,
            mtu,
            memory_mib: spec.memory_mib,
            pids_max: limits.pids_max,
            now: self.now(),
            entropy: hex::encode(rand::random::<[u8; 32]>()),
        })
    }
}

/// How often control hears of a pull.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// Pulls one container's image; the error is the container's name and the reason.
async fn pull(
    host: &Host,
    uplink: &Uplink,
    assignment: &link::TaskAssignment,
    container: &str,
    reference: &str,
) -> Result<Arc<Image>, (String, String)> {
    let mut request = PullRequest::new(reference);
    request.scope = format!("{}/{}", assignment.account, assignment.region);
    if let Some(access) = assignment.registry.images.get(reference) {
        request.auth = Auth::Basic { username: access.username.clone(), password: access.password.clone() };
        request.endpoint = Some(RegistryEndpoint {
            base_url: assignment.registry.endpoint.clone(),
            repository_prefix: String::new(),
        });
    }
    let said: Mutex<Option<Instant>> = Mutex::default();
    let progress = |now: PullProgress| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let all = now.layers_done == now.layers_total;
        let due = said.map_or(!all, |said| all || said.elapsed() >= PROGRESS_PERIOD);
        if due {
            *said = Some(Instant::now());
            uplink.pulling(&assignment.task, container, now.into());
        }
    };
    host.images
        .pull(request, progress)
        .await
        .map_err(|error| (container.to_owned(), format!("CannotPullContainerError: {}", error.reason())))
}
