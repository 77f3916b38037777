//! PID 1 of a PID namespace that all containers of a task share (`pidMode: task`).

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pivot_root, setsid};

use crate::{second_fork, sys};

const PIDNS_PATH: &str = "/ns/pid";

/// Makes the namespace and returns the path by which it is joined. It lives as long as its first
/// process, which is a child of the supervisor.
///
/// # Errors
/// The kernel refuses one of the namespaces.
pub fn share_pid_namespace(userns: Option<&OwnedFd>) -> Result<PathBuf> {
    const NONE: Option<&str> = None;
    let pid = second_fork::start("cannot make a shared PID namespace", || enter(userns), pause)?;
    File::create(PIDNS_PATH)?;
    let source = format!("/proc/{pid}/ns/pid");
    mount(Some(source.as_str()), PIDNS_PATH, NONE, MsFlags::MS_BIND, NONE)
        .context("keep the PID namespace")?;
    Ok(PIDNS_PATH.into())
}

fn enter(userns: Option<&OwnedFd>) -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    if let Some(userns) = userns {
        setns(userns, CloneFlags::CLONE_NEWUSER).context("enter the user namespace")?;
    }
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("unshare")?;
    Ok(())
}

/// Containers see this process: it keeps nothing of the supervisor's, neither files nor tree.
fn pause() -> i32 {
    if let Err(error) = leave_everything() {
        tracing::error!(error = format!("{error:#}"), "the shared PID namespace's first process failed");
        return 1;
    }
    sys::close_all();
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    if sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).is_err() {
        return 1;
    }
    loop {
        let _ = child.wait();
        while matches!(
            waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        ) {}
    }
}

fn leave_everything() -> Result<()> {
    const NONE: Option<&str> = None;
    setsid()?;
    rustix::thread::set_no_new_privs(true)?;
    let empty = Path::new("/layer");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("pause"), empty, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=4k")).context("tmpfs")?;
    std::env::set_current_dir(empty)?;
    // Stacks the old root on top of the new one, where it can be detached without a directory.
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("detach")?;
    std::env::set_current_dir("/")?;
    if fs::read_dir("/")?.next().is_some() {
        bail!("the supervisor's tree is still there");
    }
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    Ok(())
}
