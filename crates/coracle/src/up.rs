//! `coracle up`: all roles in one process, in the foreground.
//!
//! Reads as a summary: lock the state, start the roles, serve, wait for a signal. Stopping it stops no task, unless it is ephemeral.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use model::{AccountId, Region};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::commands::{Context as CommandContext, Output};
use crate::isolation;
use crate::roles::Roles;
use crate::state_dir::{Endpoint, StateDir};

/// How long the tasks of an ephemeral server may take to be ended.
const EPHEMERAL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

#[derive(Clone, Debug, clap::Args)]
pub struct UpArgs {
    /// Address and port of the AWS endpoint and the registry.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// The region that resources belong to.
    #[arg(long, env = "CORACLE_REGION", default_value = "us-east-1", value_parser = |v: &str| Region::parse(v))]
    pub region: Region,
    /// The 12-digit account that resources belong to.
    #[arg(long, env = "CORACLE_ACCOUNT", default_value = "000000000000", value_parser = |v: &str| AccountId::parse(v))]
    pub account: AccountId,
    /// What isolates tasks.
    #[arg(long, value_enum, default_value_t = isolation::Wish::Auto)]
    pub isolation: isolation::Wish,
    /// How the memory of microVMs comes in from their template.
    #[arg(long, value_enum, default_value_t = isolation::Memory::Mapped)]
    pub microvm_memory: isolation::Memory,
    /// Keep the state in a directory of its own that is removed at exit, tasks included; `coracle
    /// reset` empties it in between.
    #[arg(long)]
    pub ephemeral: bool,
    /// How many times this machine's CPUs may be promised to tasks.
    #[arg(long, value_name = "FACTOR", default_value_t = 16.0, value_parser = factor)]
    pub cpu_overcommit: f64,
    /// How many times this machine's memory may be promised to tasks.
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0, value_parser = factor)]
    pub memory_overcommit: f64,
    /// Sandboxes kept ready, so that tasks start at once.
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub ready_sandboxes: u16,
    /// Registry hosts (HOST or HOST:PORT) that are spoken to without TLS; loopback ones always are.
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// Disk space for unpacked images, in GiB; the least recently used are removed beyond it, and no
    /// single image may be larger.
    #[arg(long, value_name = "GIB", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub image_disk_gib: u64,
}

fn factor(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1.0..=1000.0).contains(&value) { Ok(value) } else { Err("not between 1 and 1000".to_owned()) }
}

/// # Errors
/// Whoever runs it is not root.
pub fn require_root(command: &str) -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "coracle {command} needs root: it makes and removes namespaces, cgroups, mounts and network links of tasks. \
         Run it as root (sudo coracle {command}); clients need no root"
    )
}

pub fn main(context: &CommandContext, args: UpArgs) -> anyhow::Result<()> {
    require_root("up")?;
    crate::logging::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(&context.state_dir, context.output, args))
}

async fn serve(state_dir: &Path, output: Output, args: UpArgs) -> anyhow::Result<()> {
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

    let roles = Roles::start(&state, &args, address, &url).await?;
    if left_over {
        roles.control.reset().await.context("what the last ephemeral server left cannot be removed")?;
    }

    let defaults = roles.control.default_network();
    let notice = Endpoint {
        url: url.clone(),
        account: args.account.to_string(),
        region: args.region.to_string(),
        subnet: defaults.subnet.id.to_string(),
        security_group: defaults.security_group.to_string(),
        registry: roles.control.config().registry_host.clone(),
        pid: std::process::id(),
        ephemeral: args.ephemeral,
    };
    state.publish(&notice)?;
    let (stop_sender, stop) = watch::channel(false);
    let server = axum::serve(listener, roles.control.router()).with_graceful_shutdown(stopped(stop));
    let server = tokio::spawn(server.into_future());
    let ready = match output {
        Output::Text => format!("coracle is ready at {url}"),
        Output::Json => serde_json::to_string(&notice).context("cannot say where the server is")?,
    };
    // Whoever started it may have closed its output.
    let _ = writeln!(std::io::stdout(), "{ready}");

    signals.received().await;
    eprintln!("coracle is stopping; tasks {}", if args.ephemeral { "are ended" } else { "go on running" });
    if args.ephemeral {
        roles.control.reset().await.context("the state cannot be emptied")?;
        if !roles.wait_for_the_last_task(EPHEMERAL_PATIENCE).await? {
            bail!("some tasks did not end; their sandboxes are left on this machine");
        }
    }
    state.unpublish();
    // Without receivers there is nobody left to stop.
    let _ = stop_sender.send(true);
    let left = roles.stop().await?;
    // A client that keeps its connection open does not keep the server up.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), server).await;
    if args.ephemeral {
        left.remove().await?;
        std::fs::remove_dir_all(state.path())
            .with_context(|| format!("cannot remove {}", state.path().display()))?;
    }
    Ok(())
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // A dropped sender means the same.
    drop(stop.wait_for(|stop| *stop).await);
}

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The address that a client on this machine uses for a listening one.
fn client_address(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() { format!("127.0.0.1:{}", listen.port()) } else { listen.to_string() }
}
