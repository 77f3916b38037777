//! From assignment to running containers.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::try_join_all;
use model::sandbox::{Layer, SandboxContainer, SandboxSpec};

use super::*;
use crate::image::{Auth, Image, PullProgress, PullRequest, RegistryEndpoint};
use crate::slot::{Slot, SlotError};

/// A task that does not start, and why; in `stoppedReason`'s words.
fn failed(reason: impl Into<String>) -> StopCause {
    StopCause { code: StopCode::TaskFailedToStart, reason: reason.into() }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl TaskDriver {
    /// Brings the task to a supervisor that has been told to run it: from the start, or from where
    /// an earlier agent left it.
    pub(super) async fn boot(&mut self) -> Result<Connection, StopCause> {
        if let (Some(slot), Some(_)) = (self.entry.slot.clone(), self.entry.link.clone()) {
            return self.resume(&slot).await;
        }
        if let Some(slot) = self.entry.slot.take() {
            // Chosen, and the agent died before it was on the network: nothing ran in it.
            self.host.slots.discard(&slot).await.map_err(|e| failed(chain(&e)))?;
        }
        if let Some(cause) = self.stop.clone() {
            return Err(cause);
        }
        let (host, uplink) = (self.host.clone(), self.uplink.clone());
        let assignment = self.entry.assignment.clone();
        let spec = &assignment.spec;
        let images = async {
            let pulls = spec.containers.iter().map(|c| pull(&host, &uplink, &assignment, &c.name, &c.image));
            try_join_all(pulls).await
        };
        tokio::pin!(images);
        // Pulling does not wait for the network interface, nor the other way round.
        let mut early = None;
        let slot = self
            .unless_stopped(async {
                let taking = host.slots.take(spec.ephemeral_storage_gib);
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
        let mut connection = self.attach(slot).await?;
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
        let sandbox = self.sandbox_spec(&images).await?;
        connection
            .send(&ToSupervisor::Run { spec: Box::new(sandbox) })
            .await
            .map_err(|error| failed(chain(&error)))?;
        Ok(connection)
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
                    Some(Command::LogsStored { .. }) => {}
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Records the slot, gives its link the task's address, and records that.
    async fn attach(&mut self, slot: Result<Slot, SlotError>) -> Result<Connection, StopCause> {
        let slot = slot.map_err(|error| failed(format!("ResourceInitializationError: {}", chain(&error))))?;
        self.entry.slot = Some(slot.record);
        self.record()?;
        let attached = self.host.network.attach(slot.link, &self.entry.assignment.eni).await;
        let link = attached.map_err(|error| {
            failed(format!(
                "ResourceInitializationError: failed to attach the network interface: {}",
                chain(&error)
            ))
        })?;
        self.entry.link = Some(link);
        self.record()?;
        Ok(slot.connection)
    }

    fn record(&self) -> Result<(), StopCause> {
        self.host
            .ledger
            .put(&self.entry)
            .map_err(|e| failed(format!("ResourceInitializationError: {}", chain(&e))))
    }

    /// An earlier agent chose the sandbox and attached it; its supervisor tells the rest.
    async fn resume(&mut self, slot: &crate::slot::SlotRecord) -> Result<Connection, StopCause> {
        if !slot.process.is_alive() {
            self.supervisor_died();
            return Err(self.stop.clone().unwrap_or_else(|| failed("the task's supervisor was killed")));
        }
        let mut connection = self.connect().await.map_err(|error| failed(chain(&error)))?;
        let first = connection.receive().await.map_err(|error| failed(chain(&error)))?;
        if let FromSupervisor::State { state } = first {
            if state.task.is_none() {
                if let Some(cause) = self.stop.clone() {
                    return Err(cause);
                }
                let (host, uplink) = (self.host.clone(), self.uplink.clone());
                let assignment = self.entry.assignment.clone();
                let containers = assignment.spec.containers.iter();
                let pulls = containers.map(|c| pull(&host, &uplink, &assignment, &c.name, &c.image));
                let images = try_join_all(pulls).await.map_err(|(container, reason)| {
                    self.report.container_failed(&container, reason.clone());
                    failed(reason)
                })?;
                let sandbox = self.sandbox_spec(&images).await?;
                let run = ToSupervisor::Run { spec: Box::new(sandbox) };
                connection.send(&run).await.map_err(|error| failed(chain(&error)))?;
            } else {
                self.report.take_in(&state, self.now());
                self.publish().await;
                // Said again by the supervisor on a new connection, with the unacknowledged logs.
                connection = self.connect().await.map_err(|error| failed(chain(&error)))?;
            }
        }
        Ok(connection)
    }

    async fn sandbox_spec(&mut self, images: &[Arc<Image>]) -> Result<SandboxSpec, StopCause> {
        let assignment = self.entry.assignment.clone();
        let spec = &assignment.spec;
        for (container, image) in spec.containers.iter().zip(images) {
            self.report.image(&container.name, image.manifest_digest.to_string());
            self.host.images.lease(image, self.report.task().as_str()).map_err(|e| failed(chain(&e)))?;
        }
        let limits = crate::cgroup::Limits::of(spec.cpu_units, spec.memory_mib);
        let cgroup = self.host.cgroups.create_task(&assignment.task, &limits).map_err(|error| {
            failed(format!("ResourceInitializationError: failed to set the task's limits: {}", chain(&error)))
        })?;
        let scratch = self.entry.slot.as_ref().map_or_else(PathBuf::new, |slot| slot.scratch.clone());
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
            cgroup_parent: Some(cgroup.path().to_string_lossy().into_owned()),
            scratch,
            volumes: spec.volumes.clone(),
            share_pid_namespace: spec.share_pid_namespace,
            containers,
            guest: None,
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
