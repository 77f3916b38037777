//! The supervisor as the first process of a microVM: what the agent does from outside for a
//! container sandbox is done here, from inside, before and when the task comes.
//!
//! ```text
//! kernel ── /init ──▶ boot: devices, modules, a root of its own, control groups, vsock
//! agent  ── Run ────▶ settle in: clock, entropy, name, network, disks; then as in any sandbox
//! agent  ── Release ▶ power off
//! ```
//!
//! The machine may be a copy of one that was booted for no task: nothing of the world outside is
//! looked at before the task comes. It may also be a copy of a task's machine, whose processes are
//! frozen: they go on when the agent has said whose they are.
//!
//! ```text
//! agent  ── Freeze ─▶ no process of the task runs; the machine is written down
//! agent  ── Adopt ──▶ (in the copy) settle anew: clock, entropy, names, network; thaw
//! agent  ── Thaw ───▶ (in the original) thaw
//! ```

mod boot;
pub mod cgroups;
pub mod clock;
mod disks;
mod end;
pub mod identity;
mod network;

use std::path::PathBuf;

use anyhow::{Context, Result};
use model::sandbox::{GuestSetup, Layer, SandboxSpec};

use crate::guest::disks::LayerDisk;
use crate::supervisor::Supervisor;

/// The name by which the kernel starts the first process of an initial file system.
const INIT: &str = "/init";

/// What a microVM's supervisor knows beside what any sandbox's does.
#[derive(Default)]
pub struct Guest {
    layers: LayerDisk,
}

/// Whether this process is a machine's first.
pub fn is_first_process() -> bool {
    nix::unistd::getpid().as_raw() == 1 && std::env::args_os().next().is_some_and(|name| name == INIT)
}

/// Runs the machine; it ends with this process's work.
pub fn run() -> ! {
    end::reset_on_panic();
    let result = boot::boot().and_then(|sandbox| Supervisor::new(sandbox)?.run());
    match result {
        Ok(()) => end::power_off(),
        Err(error) => end::reset(&format!("{error:#}")),
    }
}

impl Guest {
    /// Gives the machine its place in the world, and finds the task's disks.
    ///
    /// # Errors
    /// The specification is not for a microVM, or a device is missing.
    pub fn settle_in(&mut self, spec: &SandboxSpec) -> Result<()> {
        let setup = spec.guest.as_ref().context("the task comes without a place for a microVM")?;
        identity::assume(setup, &spec.hostname)?;
        network::configure(setup, spec.address)?;
        cgroups::make_task_group(setup)?;
        let layers = spec.containers.iter().flat_map(|container| &container.layers);
        self.layers.find(layers)?;
        disks::wait_for_scratch(&spec.scratch)
    }

    /// Gives a copy of the machine of the task `old` its own place in the world.
    ///
    /// # Errors
    /// The kernel refuses a part of it.
    pub fn settle_anew(&mut self, setup: &GuestSetup, old: &SandboxSpec, new: &SandboxSpec) -> Result<()> {
        identity::assume(setup, &new.hostname)?;
        network::move_to(setup, old.address, new.address)?;
        cgroups::make_task_group(setup)
    }

    /// The block device that holds a layer.
    ///
    /// # Errors
    /// The layer is not on the machine's disk.
    pub fn layer_device(&self, layer: &Layer) -> Result<PathBuf> {
        self.layers.device(layer)
    }
}
