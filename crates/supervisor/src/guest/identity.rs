//! What makes a copy of a machine another machine: its clock, its randomness, its name.

use std::fs::File;

use anyhow::{Context, Result, bail};
use model::sandbox::GuestSetup;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::guest::clock::Clock;
use crate::scratch::attach_at;
use crate::sys::{self, MAX_ENTROPY};

/// Sets clock, randomness and name.
///
/// # Errors
/// The entropy is not hexadecimal, or the kernel refuses one of them.
pub fn assume(setup: &GuestSetup, hostname: &str) -> Result<()> {
    Clock::set(setup.now)?;
    stir(&unhex(&setup.entropy)?).context("stir the random number generator")?;
    rustix::system::sethostname(hostname.as_bytes()).context("set the host name")
}

/// What the kernel says once and for all, to whomever asks.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What a copy's containers see instead; one file for all.
const OWN_BOOT_ID: &str = "/disk/etc/boot_id";

/// Draws a boot id for a copy of a machine. The kernel keeps the one that it has drawn, so containers
/// are shown this one ([`show_boot_id`]).
///
/// # Errors
/// The task's disk cannot be written.
pub fn draw_boot_id() -> Result<()> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    // In place: it may be mounted in containers already, in a copy of a copy.
    std::fs::write(OWN_BOOT_ID, id).context("no room on the task's disk")
}

/// Lets the processes in `pid`'s mount namespace see the boot id that was drawn.
///
/// # Errors
/// The kernel refuses a mount, or the process is gone.
pub fn show_boot_id(pid: Pid) -> Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = open_tree(CWD, OWN_BOOT_ID, flags).context("open the boot id")?;
    // By a child: there is no way back into one's own mount namespace without losing one's root.
    let Some(child) = sys::fork()? else {
        let entered = setns(&namespace, CloneFlags::CLONE_NEWNS).is_ok();
        let shown = entered && attach_at(&file, BOOT_ID).is_ok();
        sys::exit_now(i32::from(!shown));
    };
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        _ => bail!("the container cannot be shown its boot id"),
    }
}

/// Names the machine as the processes in `pid`'s UTS namespace see it, too.
///
/// # Errors
/// The process is gone, or the kernel refuses.
pub fn rename_container(pid: Pid, hostname: &str) -> Result<()> {
    let own = File::open("/proc/self/ns/uts")?;
    let theirs = File::open(format!("/proc/{pid}/ns/uts"))?;
    setns(&theirs, CloneFlags::CLONE_NEWUTS).context("enter the container's UTS namespace")?;
    let named = rustix::system::sethostname(hostname.as_bytes());
    setns(&own, CloneFlags::CLONE_NEWUTS).context("leave the container's UTS namespace")?;
    named.context("set the container's host name")
}

/// Credits the bytes as random, and has every generator take a new key from the pool: two copies of
/// one machine must not go on with the same.
fn stir(entropy: &[u8]) -> Result<()> {
    let device = File::options().write(true).open("/dev/urandom")?;
    sys::add_entropy(&device, entropy)?;
    Ok(sys::reseed(&device)?)
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > 2 * MAX_ENTROPY {
        bail!("entropy of {} hexadecimal digits", digits.len());
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .context("the entropy is not hexadecimal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal() {
        assert_eq!(unhex("00fFa1").unwrap(), [0, 0xff, 0xa1]);
        for wrong in ["", "0", "0g", "+1", "é"] {
            assert!(unhex(wrong).is_err(), "{wrong}");
        }
        assert!(unhex(&"00".repeat(MAX_ENTROPY + 1)).is_err());
    }
}
