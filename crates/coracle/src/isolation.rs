//! What isolates tasks on this machine: chosen once, at the start, and said.

use std::path::Path;

use agent::guest::{IN_STATE, KernelStore};
use agent::host::kvm::{self, KvmState};
use agent::sandbox::template::{Loading, MachineFiles, USERFAULTFD};
use anyhow::{Context, bail};
use model::spec::Isolation;

use crate::programs::Program;
use crate::state_dir::StateDir;

/// `--isolation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wish {
    /// The strongest that this machine can do.
    Auto,
    /// Containers with user namespaces, seccomp and no new privileges.
    Container,
    /// A kernel per task. Tasks that insist on a container (tag coracle.isolation) get one.
    Microvm,
}

/// `--microvm-memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Memory {
    /// Mapped from the template's file: the fastest, and tasks share what they only read.
    Mapped,
    /// Read when it is first touched (userfaultfd, Linux 6.1): for state directories on storage that
    /// may fail, as a task whose memory cannot be read ends with that reason.
    OnDemand,
}

impl Memory {
    fn loading(self) -> anyhow::Result<Loading> {
        match self {
            Self::Mapped => Ok(Loading::Mapped),
            Self::OnDemand if Path::new(USERFAULTFD).exists() => Ok(Loading::OnDemand),
            Self::OnDemand => {
                bail!("--microvm-memory on-demand: there is no {USERFAULTFD} (Linux 6.1 has it)")
            }
        }
    }
}

/// What was chosen.
pub struct Choice {
    /// For tasks that do not say.
    pub default: Isolation,
    /// What microVMs are made from; `None`: this server makes none.
    pub machines: Option<MachineFiles>,
}

impl Choice {
    fn containers() -> Self {
        Self { default: Isolation::Container, machines: None }
    }
}

/// # Errors
/// MicroVMs are wished for and cannot be had; why, and what to do.
pub async fn choose(wish: Wish, memory: Memory, state: &StateDir, programs: &Path) -> anyhow::Result<Choice> {
    if wish == Wish::Container {
        return Ok(Choice::containers());
    }
    let loading = memory.loading()?;
    let probed = tokio::task::spawn_blocking(kvm::probe).await.context("KVM cannot be probed")?;
    let obstacle = match probed {
        KvmState::RunsGuestCode => None,
        KvmState::Absent => Some("there is no /dev/kvm".to_owned()),
        KvmState::Inaccessible(why) => Some(format!("/dev/kvm cannot be used: {why}")),
        KvmState::Unusable(why) => Some(format!("this machine's KVM cannot run a Linux guest: {why}")),
    };
    let machines = match obstacle {
        None => machines(loading, state, programs).await,
        Some(why) => Err(anyhow::anyhow!(why)),
    };
    match (machines, wish) {
        (Ok(machines), _) => Ok(Choice { default: Isolation::Microvm, machines: Some(machines) }),
        (Err(why), Wish::Microvm) => bail!("--isolation microvm: {why:#}"),
        (Err(why), _) => {
            tracing::info!("tasks run in containers, not in microVMs: {why:#}");
            Ok(Choice::containers())
        }
    }
}

async fn machines(loading: Loading, state: &StateDir, programs: &Path) -> anyhow::Result<MachineFiles> {
    let kernels = KernelStore::new(state.join(IN_STATE));
    let supervisor = Program::Supervisor.provide(programs)?;
    let (jailer, monitor) = (Program::Jailer.provide(programs)?, Program::Monitor.provide(programs)?);
    let making = move || {
        let kernel = kernels
            .newest()?
            .context("there is no guest kernel on this machine; `coracle kernel install` gets Debian's")?;
        // Those of before are kept by what still runs on them, if anything does.
        kernels.remove_others(&kernel)?;
        let initramfs = kernel.initramfs(&supervisor)?;
        anyhow::Ok(MachineFiles { jailer, monitor, kernel: kernel.vmlinux(), initramfs, loading })
    };
    tokio::task::spawn_blocking(making).await.context("the guest kernel cannot be made ready")?
}
