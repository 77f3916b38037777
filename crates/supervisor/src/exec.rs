//! Running a program inside a running container: health checks.
//!
//! Not by libcontainer: the process that its tenant builder makes does not join the container's
//! user namespace, and would be the host's root in the container's file system.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::rc::Rc;

use anyhow::{Context, Result};
use caps::CapSet;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};

use crate::cgroup::Cgroup;
use crate::executor;
use crate::image_user::ImageUser;
use crate::seccomp::Filter;
use crate::{second_fork, sys};

/// What a program in a container runs with: the same as the container's own process.
#[derive(Clone)]
pub struct Inside {
    pub has_user_namespace: bool,
    pub is_privileged: bool,
    pub user: ImageUser,
    pub environment: Vec<String>,
    pub working_directory: std::path::PathBuf,
    pub capabilities: caps::CapsHashSet,
    pub filter: Rc<Filter>,
    pub cgroup: Cgroup,
}

/// Starts a program in the container whose first process is `container`; its output goes nowhere.
/// Returns its pid, which becomes a child of the supervisor (PID 1 here) and leads a process group.
///
/// # Errors
/// The container has ended meanwhile, or has no room for another process.
pub fn start(container: Pid, context: &Inside, arguments: &[String], dev_null: &File) -> Result<Pid> {
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(container.as_raw()).context("no pid")?,
        rustix::process::PidfdFlags::empty(),
    )?;
    let enter = || join(container, &pidfd, context);
    second_fork::start("cannot enter the container", enter, || {
        let text = become_program(context, arguments, dev_null);
        tracing::info!(text, "health check not executed");
        126
    })
}

fn join(first: Pid, container: &impl AsFd, context: &Inside) -> Result<()> {
    // While this process may still write there.
    let _ = fs::write("/proc/self/oom_score_adj", b"0");
    context.cgroup.join(first)?;
    // Not the container's root only knows this process's memory as long as it is not dumpable.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    // A process cannot join the user namespace that it is in.
    let user = if context.has_user_namespace { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
    let all = user
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(container, all).context("setns")
}

/// Drops everything that is the supervisor's and executes the program; returns why it could not.
fn become_program(context: &Inside, arguments: &[String], dev_null: &File) -> String {
    match drop_everything(context, dev_null) {
        Ok(()) => {
            let program = arguments.first().map_or("", String::as_str);
            executor::run(program, arguments, &context.environment, &context.filter)
        }
        Err(error) => format!("{error:#}"),
    }
}

fn drop_everything(context: &Inside, dev_null: &File) -> Result<()> {
    setsid()?;
    for descriptor in 0..3 {
        sys::dup_onto(dev_null, descriptor)?;
    }
    sys::close_on_exec_from_3();
    if !context.is_privileged {
        rustix::thread::set_no_new_privs(true)?;
    }
    let user = &context.user;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).context("setgroups")?;
    for capability in caps::all() {
        if !context.capabilities.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    std::env::set_current_dir(&context.working_directory).context("chdir")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")?;
    caps::clear(None, CapSet::Inheritable)?;
    if user.uid == 0 {
        caps::set(None, CapSet::Effective, &context.capabilities)?;
        caps::set(None, CapSet::Permitted, &context.capabilities)?;
    } else {
        caps::clear(None, CapSet::Effective)?;
        caps::clear(None, CapSet::Permitted)?;
    }
    Ok(())
}
