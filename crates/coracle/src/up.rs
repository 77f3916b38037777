//! `coracle up`: all roles in one process, in the foreground.
//!
//! Reads as a summary: lock the state, open control, open the network and the agent, serve, wait
//! for a signal. Stopping it stops no task, unless it is ephemeral.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use agent::image::ImageOptions;
use agent::instance::Instance;
use agent::net::{NetConfig, Network};
use agent::{Agent, AgentConfig};
use anyhow::{Context, bail};
use control::credentials::AccessKey;
use control::first_start::PREFERRED_CIDR;
use control::{Control, ControlConfig};
use model::host::Resources;
use model::{AccountId, Region};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::state_dir::{Endpoint, StateDir};
use crate::supervisor_binary;

/// How long what an ephemeral server leaves in its control groups may take to be gone.
const LEFT_OVER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Clone, Debug, clap::Args)]
pub struct UpArgs {
    /// Address and port of the AWS endpoint and the registry.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// The region that resources belong to.
    #[arg(long, env = "CORACLE_REGION", default_value = "us-east-1", value_parser = |v: &str| Region::parse(v))]
    region: Region,
    /// The 12-digit account that resources belong to.
    #[arg(long, env = "CORACLE_ACCOUNT", default_value = "000000000000", value_parser = |v: &str| AccountId::parse(v))]
    account: AccountId,
    /// What isolates tasks.
    #[arg(long, value_enum, default_value_t = IsolationArg::Auto)]
    isolation: IsolationArg,
    /// Keep the state in a directory of its own that is removed at exit, tasks included; `coracle
    /// reset` empties it in between.
    #[arg(long)]
    ephemeral: bool,
    /// How many times this machine's CPUs may be promised to tasks.
    #[arg(long, value_name = "FACTOR", default_value_t = 16.0, value_parser = factor)]
    cpu_overcommit: f64,
    /// How many times this machine's memory may be promised to tasks.
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0, value_parser = factor)]
    memory_overcommit: f64,
    /// Sandboxes kept ready, so that tasks start at once.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=200))]
    ready_sandboxes: u16,
    /// Registry hosts (HOST or HOST:PORT) that are spoken to without TLS; loopback ones always are.
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
    /// Disk space for unpacked images, in GiB; the least recently used are removed beyond it, and no
    /// single image may be larger.
    #[arg(long, value_name = "GIB", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    image_disk_gib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum IsolationArg {
    /// The strongest that this machine can do.
    Auto,
    /// Containers with user namespaces, seccomp and no new privileges.
    Container,
    /// A kernel per task.
    Microvm,
}

fn factor(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1.0..=1000.0).contains(&value) { Ok(value) } else { Err("not between 1 and 1000".to_owned()) }
}

pub fn main(state_dir: &Path, args: UpArgs) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "coracle up needs root: it makes namespaces, cgroups, mounts and network links for tasks. \
             Run it as root (sudo coracle up); clients need no root"
        );
    }
    if args.isolation == IsolationArg::Microvm {
        bail!("--isolation microvm is not there yet; use --isolation container");
    }
    crate::logging::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(state_dir, args))
}

async fn serve(state_dir: &Path, args: UpArgs) -> anyhow::Result<()> {
    // From the first moment: a signal during the start ends the server as soon as it stands.
    let mut signals = Signals::listen()?;
    let state = StateDir::lock(state_dir)?;
    let left_over = if args.ephemeral {
        state.make_ephemeral()?
    } else {
        state.refuse_ephemeral()?;
        false
    };
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}; is something else there? Choose another with --listen", args.listen)
    })?;
    let address = listener.local_addr().context("cannot read the address")?;
    let url = format!("http://{}", client_address(address));

    let config = ControlConfig {
        dir: state.path().to_owned(),
        account: args.account.clone(),
        region: args.region.clone(),
        root_key: root_key(&state)?,
        registry_host: format!("localhost:{}", address.port()),
        url: url.clone(),
        ephemeral: args.ephemeral,
    };
    let instance = Instance::of(state.path()).context("cannot name this instance")?;
    let region = args.region.clone();
    let network = Network::open(NetConfig { instance: instance.clone(), region, upstream_dns: None })
        .await
        .context("the network cannot be set up; `coracle doctor` says what this machine lacks")?;
    let choosing = lock_blocks()?;
    let free_block = async || network.free_cidr(PREFERRED_CIDR).await.unwrap_or(PREFERRED_CIDR);
    let control = Control::open(config, free_block).await.context("control cannot start")?;
    let defaults = control.default_network().clone();
    let agent = AgentConfig {
        instance,
        dir: state.join("agent"),
        supervisor: supervisor_binary::provide(&state.join("agent/bin"))?,
        vpc: defaults.subnet.vpc.clone(),
        vpc_cidr: defaults.subnet.vpc_cidr,
        capacity: capacity(&args, state.path())?,
        ready_slots: args.ready_sandboxes.into(),
        images: image_options(&args),
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
    let agent = tokio::spawn(agent.run(agent_end, stop.clone()));
    connected.notified().await;
    if left_over {
        control.reset().await.context("what the last ephemeral server left cannot be removed")?;
    }

    let notice = Endpoint {
        url: url.clone(),
        account: args.account.to_string(),
        region: args.region.to_string(),
        subnet: defaults.subnet.id.to_string(),
        security_group: defaults.security_group.to_string(),
        registry: control.config().registry_host.clone(),
        pid: std::process::id(),
        ephemeral: args.ephemeral,
    };
    state.publish(&notice)?;
    let router = control.router();
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped(stop.clone()));
    let server = tokio::spawn(server.into_future());
    // Whoever started it may have closed its output.
    let _ = writeln!(std::io::stdout(), "coracle is ready at {url}");

    signals.received().await;
    eprintln!("coracle is stopping; tasks {}", if args.ephemeral { "are ended" } else { "go on running" });
    if args.ephemeral {
        control.reset().await.context("the state cannot be emptied")?;
        wait_for_the_last_task(&host).await?;
    }
    state.unpublish();
    // Without receivers there is nobody left to stop.
    let _ = stop_sender.send(true);
    for part in [sessions, reconciling] {
        part.await.context("a part of control failed")?;
    }
    agent.await.context("the agent failed")??;
    // A client that keeps its connection open does not keep the server up.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), server).await;
    host.slots.close().await.context("waiting sandboxes cannot be removed")?;
    if args.ephemeral {
        host.cgroups.teardown(LEFT_OVER_TIMEOUT).context("the control groups cannot be removed")?;
        network.teardown().await.context("the network cannot be removed")?;
        std::fs::remove_dir_all(state.path())
            .with_context(|| format!("cannot remove {}", state.path().display()))?;
    }
    Ok(())
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // A dropped sender means the same.
    drop(stop.wait_for(|stop| *stop).await);
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

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Until nothing of a task is on this host any more.
async fn wait_for_the_last_task(host: &agent::Host) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !host.ledger.entries()?.is_empty() {
        if tokio::time::Instant::now() > deadline {
            bail!("some tasks did not end; their sandboxes are left on this machine");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The address that a client on this machine uses for a listening one.
fn client_address(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() { format!("127.0.0.1:{}", listen.port()) } else { listen.to_string() }
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
