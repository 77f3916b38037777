//! The roles that `coracle up` composes in one process: control, the host's network, the agent.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::image::ImageOptions;
use agent::instance::Instance;
use agent::ledger::LedgerError;
use agent::net::{NetConfig, Network};
use agent::{Agent, AgentConfig, Host};
use anyhow::{Context, bail};
use control::credentials::AccessKey;
use control::first_start::PREFERRED_CIDR;
use control::{Control, ControlConfig};
use model::host::Resources;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::isolation;
use crate::programs::Program;
use crate::state_dir::StateDir;
use crate::up::UpArgs;

/// How long killed tasks may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// Control and agent, running and connected.
pub struct Roles {
    pub control: Control,
    host: Arc<Host>,
    on_host: OnHost,
    stop: watch::Sender<bool>,
    serving: [JoinHandle<()>; 2],
    agent: JoinHandle<Result<(), LedgerError>>,
}

/// What an instance has on this host.
pub struct OnHost {
    instance: Instance,
    network: Network,
    agent_dir: PathBuf,
}

impl OnHost {
    /// Looks at what the instance with this state directory has; makes nothing.
    pub async fn open(state: &StateDir, args: &UpArgs) -> anyhow::Result<Self> {
        let instance = Instance::of(state.path()).context("cannot name this instance")?;
        let config =
            NetConfig { instance: instance.clone(), region: args.region.clone(), upstream_dns: None };
        let network = Network::open(config)
            .await
            .context("the network cannot be set up; `coracle doctor` says what this machine lacks")?;
        Ok(Self { instance, network, agent_dir: state.join("agent") })
    }

    /// Removes it all; tasks that still run end at once.
    pub async fn remove(self) -> anyhow::Result<()> {
        agent::remove_from_host(&self.agent_dir, &self.instance, &self.network)
            .await
            .context("what this instance made on the host cannot be removed")
    }
}

impl Roles {
    /// Starts what serves at `address`, which clients on this machine reach at `url`. Returns when
    /// the agent has found its tasks again and is connected.
    pub async fn start(
        state: &StateDir,
        args: &UpArgs,
        address: SocketAddr,
        url: &str,
    ) -> anyhow::Result<Self> {
        let programs = state.join("agent/bin");
        let isolation = isolation::choose(args.isolation, args.microvm_memory, state, &programs).await?;
        let config = ControlConfig {
            dir: state.path().to_owned(),
            account: args.account.clone(),
            region: args.region.clone(),
            root_key: root_key(state)?,
            registry_host: format!("localhost:{}", address.port()),
            url: url.to_owned(),
            isolation: isolation.default,
            ephemeral: args.ephemeral,
        };
        let on_host = OnHost::open(state, args).await?;
        let network = &on_host.network;
        let choosing = lock_blocks()?;
        let free_block = async || network.free_cidr(PREFERRED_CIDR).await.unwrap_or(PREFERRED_CIDR);
        let control = Control::open(config, free_block).await.context("control cannot start")?;
        let subnet = &control.default_network().subnet;
        let agent = AgentConfig {
            instance: on_host.instance.clone(),
            dir: on_host.agent_dir.clone(),
            supervisor: Program::Supervisor.provide(&programs)?,
            vpc: subnet.vpc.clone(),
            vpc_cidr: subnet.vpc_cidr,
            capacity: capacity(args, state.path())?,
            ready_slots: args.ready_sandboxes.into(),
            isolation: isolation.default,
            machines: isolation.machines,
            images: image_options(args),
        };
        let agent = Agent::open(agent, network.clone()).await.context("the agent cannot start")?;
        drop(choosing);

        let (stop_sender, stop) = watch::channel(false);
        let (control_end, agent_end) = link::pair();
        let connected = control.connected();
        let hosts = control.hosts();
        let sessions = tokio::spawn({
            let stop = stop.clone();
            async move { hosts.serve(control_end, stop).await }
        });
        let reconciling = tokio::spawn(control.clone().run(stop.clone()));
        let host = agent.host().clone();
        let agent = tokio::spawn(agent.run(agent_end, stop));
        connected.notified().await;
        Ok(Self { control, host, on_host, stop: stop_sender, serving: [sessions, reconciling], agent })
    }

    /// Waits until nothing of a task is on this host any more; `false` if something still is after
    /// `patience`.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub async fn wait_for_the_last_task(&self, patience: Duration) -> anyhow::Result<bool> {
        let deadline = tokio::time::Instant::now() + patience;
        while !self.host.ledger.entries()?.is_empty() {
            if tokio::time::Instant::now() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(true)
    }

    /// Ends at once every task that is left, and waits until its end is recorded.
    ///
    /// # Errors
    /// One does not end.
    pub async fn kill_tasks(&self) -> anyhow::Result<()> {
        self.host.cgroups.teardown(KILL_PATIENCE).context("tasks cannot be killed")?;
        if !self.wait_for_the_last_task(KILL_PATIENCE).await? {
            bail!("some tasks were killed and not found to have ended");
        }
        Ok(())
    }

    /// Stops the roles; tasks go on running. Returns what is left on the host.
    pub async fn stop(self) -> anyhow::Result<OnHost> {
        // Without receivers there is nobody left to stop.
        let _ = self.stop.send(true);
        for part in self.serving {
            part.await.context("a part of control failed")?;
        }
        self.agent.await.context("the agent failed")??;
        self.host.slots.close().await.context("waiting sandboxes cannot be removed")?;
        Ok(self.on_host)
    }
}

/// Held from choosing an address block until it is routed, so that two servers that start at the same
/// time do not choose the same one.
fn lock_blocks() -> anyhow::Result<File> {
    let path = "/run/coracle-network.lock";
    let lock = File::create(path).with_context(|| format!("cannot open {path}"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {path}"))?;
    Ok(lock)
}

/// No image may take more than all may: a decompression bomb ends there, before the disk is full.
fn image_options(args: &UpArgs) -> ImageOptions {
    let limits = ImageOptions::default();
    let budget = args.image_disk_gib << 30;
    ImageOptions {
        disk_budget_bytes: budget,
        layer_limit_bytes: limits.layer_limit_bytes.min(budget),
        image_limit_bytes: limits.image_limit_bytes.min(budget),
        insecure_registries: args.insecure_registry.clone(),
        ..limits
    }
}

fn root_key(state: &StateDir) -> anyhow::Result<AccessKey> {
    let path = state.join("credentials");
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (given("CORACLE_ROOT_ACCESS_KEY_ID"), given("CORACLE_ROOT_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => {
            let key = AccessKey::new(&id, &secret).context("the given root access key is not usable")?;
            key.write(&path)?;
            Ok(key)
        }
        (None, None) => Ok(AccessKey::load_or_create(&path)?),
        _ => bail!(
            "CORACLE_ROOT_ACCESS_KEY_ID and CORACLE_ROOT_SECRET_ACCESS_KEY go together; only one is set"
        ),
    }
}

/// What tasks may be promised: this machine's resources times the overcommitment.
fn capacity(args: &UpArgs, state_dir: &Path) -> anyhow::Result<Resources> {
    let cpus = std::thread::available_parallelism().context("cannot count CPUs")?.get();
    let memory = rustix::system::sysinfo();
    let memory_mib = (memory.totalram as u64).saturating_mul(memory.mem_unit.into()) >> 20;
    let disk = rustix::fs::statvfs(state_dir).context("cannot read the size of the disk")?;
    let scale = |amount: u64, factor: f64| (amount as f64 * factor) as u64;
    Ok(Resources {
        cpu_units: scale(cpus as u64 * 1024, args.cpu_overcommit),
        memory_mib: scale(memory_mib, args.memory_overcommit),
        // Disks are sparse: most tasks write little of their 20 GiB.
        storage_gib: ((disk.f_blocks * disk.f_frsize) >> 30).saturating_mul(64),
    })
}
