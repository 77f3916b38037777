//! The task: what its containers do next, decided again after every event.
//!
//! ```text
//! container:  Pending ──start──▶ Running ──exit──▶ (output drained) ──▶ Stopped
//!                │                  ▲                     │
//!                │ cannot start     └─────── restart ◀────┤ restart policy
//!                ▼                                        │
//!             Stopped                                     ▼
//! task:    Starting ──all started──▶ Running ──▶ Stopping ──all stopped──▶ Ended
//! ```

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use model::sandbox::{GuestSetup, Identity, SandboxPhase, SandboxSpec};
use model::spec::ContainerSpec;
use model::status::{ContainerStatus, StopCause, StopCode};
use model::{HealthStatus, TaskId};
use nix::unistd::Pid;

use crate::container::{Builder, StartError};
use crate::exec;
use crate::guest::identity;
use crate::health::Health;
use crate::member::{Member, Stopping, kill_group, stop_signal, timestamp};
use crate::order::{self, Known, Readiness};
use crate::pause;
use crate::poller::Poller;
use crate::sandbox::{Place, Sandbox};
use crate::scratch::Scratch;
use crate::seccomp::Filter;

/// What the kernel's out-of-memory killer did, in ECS's words.
const OUT_OF_MEMORY: &str = "OutOfMemoryError: Container killed due to memory usage";
const FAILED_TO_START: &str = "Task failed to start";
const ESSENTIAL_EXITED: &str = "Essential container in task exited";

/// What a task needs to act.
pub struct Means<'a> {
    pub sandbox: &'a mut Sandbox,
    pub poller: &'a Poller,
    pub default_filter: &'a Rc<Filter>,
}

/// A task that the supervisor was told to run.
pub struct Task {
    pub spec: SandboxSpec,
    pub members: Vec<Member>,
    pub stop: Option<StopCause>,
    pid_namespace: Option<PathBuf>,
    /// The machine was another task's.
    is_copy: bool,
    /// Something changed that the agent does not know.
    pub is_changed: bool,
}

impl Task {
    /// Takes a task on. What cannot be set up is a failed start, not an error. `stop`: it was to
    /// be stopped before it came.
    pub fn new(spec: SandboxSpec, stop: Option<StopCause>, means: &mut Means) -> Self {
        let members =
            spec.containers.iter().enumerate().map(|(index, one)| Member::new(index, one)).collect();
        let mut task = Self { spec, members, stop, pid_namespace: None, is_copy: false, is_changed: true };
        if task.stop.is_none()
            && let Err(error) = task.set_up(means)
        {
            let reason = format!("ResourceInitializationError: {error:#}");
            tracing::error!(reason, "task not set up");
            task.fail_to_start(reason);
        }
        task
    }

    pub fn id(&self) -> &TaskId {
        &self.spec.task
    }

    fn set_up(&mut self, means: &mut Means) -> anyhow::Result<()> {
        let specs: Vec<&ContainerSpec> = self.spec.containers.iter().map(|one| &one.spec).collect();
        if order::has_cycle(&specs) {
            anyhow::bail!("the containers' dependencies form a circle");
        }
        for spec in &specs {
            // It becomes part of a path.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if spec.name.is_empty() || !spec.name.chars().all(is_plain) {
                anyhow::bail!("container name {:?}", spec.name);
            }
        }
        let sandbox = &mut *means.sandbox;
        if let Place::Microvm(guest) = &mut sandbox.place {
            guest.settle_in(&self.spec)?;
            sandbox.scratch = Some(Scratch::mount_device(&self.spec.scratch)?);
        }
        match &sandbox.scratch {
            Some(_) if sandbox.is_microvm() => {}
            Some(scratch) if scratch.is(&self.spec.scratch)? => {}
            Some(_) => anyhow::bail!("the sandbox has another disk than {}", self.spec.scratch.display()),
            None => sandbox.scratch = Some(Scratch::mount(&self.spec.scratch)?),
        }
        if self.spec.share_pid_namespace {
            self.pid_namespace = Some(pause::share_pid_namespace(sandbox.userns())?);
        }
        Ok(())
    }

    fn fail_to_start(&mut self, reason: String) {
        self.stop(StopCause { code: StopCode::TaskFailedToStart, reason });
    }

    /// Stops the task; the first cause counts.
    pub fn stop(&mut self, cause: StopCause) {
        if self.stop.is_none() {
            tracing::info!(code = cause.code.as_str(), reason = cause.reason, "stopping");
            self.stop = Some(cause);
            self.is_changed = true;
        }
    }

    /// Makes this, in a copy of another task's machine, the task of that identity: its processes
    /// go on, under other names, with logs and counts of their own. What cannot be set up is a
    /// failed start.
    pub fn adopt(&mut self, identity: Identity, means: &mut Means) {
        let old = self.spec.clone();
        let Identity { task, hostname, address, resolver, search_domain, guest } = identity;
        let new = &mut self.spec;
        (new.task, new.hostname, new.address) = (task, hostname, address);
        (new.resolver, new.search_domain) = (resolver, search_domain);
        self.is_changed = true;
        if let Err(error) = self.settle_anew(&guest, &old, means) {
            let reason = format!("ResourceInitializationError: {error:#}");
            tracing::error!(reason, "copy not set up");
            self.fail_to_start(reason);
        }
        self.spec.guest = Some(guest);
        // After the clock and the random numbers are its own.
        let (now, task) = (timestamp(), &self.spec.task);
        for member in &mut self.members {
            member.begin_anew(runtime_id(task), now, means.poller);
        }
    }

    fn settle_anew(
        &mut self,
        setup: &GuestSetup,
        old: &SandboxSpec,
        means: &mut Means,
    ) -> anyhow::Result<()> {
        let Place::Microvm(guest) = &mut means.sandbox.place else {
            anyhow::bail!("a container sandbox is no copy");
        };
        guest.settle_anew(setup, old, &self.spec)?;
        identity::draw_boot_id()?;
        let has_shown = std::mem::replace(&mut self.is_copy, true);
        for member in &mut self.members {
            if let Some(prepared) = &mut member.prepared {
                prepared.move_to(old, &self.spec)?;
            }
            if let Some(pid) = member.pid() {
                identity::rename_container(pid, &self.spec.hostname)?;
                if !has_shown {
                    identity::show_boot_id(pid)?;
                }
            }
        }
        Ok(())
    }

    pub fn phase(&self) -> SandboxPhase {
        if self.members.iter().all(|member| member.has_ended) {
            SandboxPhase::Ended
        } else if self.stop.is_some() {
            SandboxPhase::Stopping
        } else if self.members.iter().all(|member| member.runs > 0 || member.has_ended) {
            SandboxPhase::Running
        } else {
            SandboxPhase::Starting
        }
    }

    /// When to look again at the latest.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let members = self.members.iter().filter_map(Member::deadline);
        let dependencies = self.pending().filter_map(|index| match self.readiness(index, now) {
            Readiness::Waiting(until) => until,
            _ => None,
        });
        members.chain(dependencies).min()
    }

    /// Does everything that can be done now.
    pub fn advance(&mut self, means: &mut Means) {
        loop {
            let now = Instant::now();
            for member in &mut self.members {
                member.end_idle_event(now);
            }
            self.check_health(means, now);
            if self.settle_exits(now) {
                continue;
            }
            if self.stop.is_some() {
                self.stop_members(now);
                return;
            }
            if self.start_next(means, now) {
                continue;
            }
            if !self.members.iter().all(|member| member.has_ended) {
                return;
            }
            self.essential_exited();
        }
    }

    fn specs(&self) -> Vec<&ContainerSpec> {
        self.spec.containers.iter().map(|one| &one.spec).collect()
    }

    /// Containers that have not run yet.
    fn pending(&self) -> impl Iterator<Item = usize> {
        self.members.iter().filter(|member| member.runs == 0 && !member.has_ended).map(|member| member.index)
    }

    fn readiness(&self, index: usize, now: Instant) -> Readiness {
        let known: Vec<Known> = self.members.iter().map(Member::known).collect();
        order::readiness(&self.specs(), &known, index, now)
    }

    /// Starts one container that can be started. Whether anything happened.
    fn start_next(&mut self, means: &mut Means, now: Instant) -> bool {
        if let Some(member) = self.members.iter_mut().find(|member| member.wants_restart) {
            // Its dependencies were resolved once.
            member.wants_restart = false;
            let index = member.index;
            self.start(index, means);
            return true;
        }
        let next = self.pending().find_map(|index| match self.readiness(index, now) {
            Readiness::Waiting(_) => None,
            Readiness::Ready => Some((index, None)),
            Readiness::Never(reason) => Some((index, Some(reason))),
        });
        match next {
            None => false,
            Some((index, None)) => {
                self.start(index, means);
                true
            }
            Some((index, Some(reason))) => {
                self.end(index, None, Some(reason));
                self.fail_to_start(FAILED_TO_START.to_owned());
                true
            }
        }
    }

    fn start(&mut self, index: usize, means: &mut Means) {
        self.is_changed = true;
        match self.try_start(index, means) {
            Ok(()) => {}
            Err(error) => {
                tracing::info!(
                    container = self.members[index].state.name,
                    reason = error.reason,
                    "not started"
                );
                let is_restart = self.members[index].runs > 0;
                self.end(index, error.exit_code, Some(error.reason));
                if self.spec.containers[index].spec.essential {
                    if is_restart {
                        self.essential_exited();
                    } else {
                        self.fail_to_start(FAILED_TO_START.to_owned());
                    }
                }
            }
        }
    }

    fn try_start(&mut self, index: usize, means: &mut Means) -> Result<(), StartError> {
        let sandbox = &*means.sandbox;
        if self.members[index].prepared.is_none() {
            let builder = Builder { sandbox, task: &self.spec, default_filter: means.default_filter };
            self.members[index].prepared = Some(builder.prepare(index)?);
        }
        let container = &self.spec.containers[index];
        let member = &mut self.members[index];
        let Some(prepared) = &member.prepared else { return Ok(()) };
        let oom_kills = prepared.cgroup.oom_kills();
        let run =
            prepared.start(sandbox, &self.spec, container, member.runs, self.pid_namespace.as_deref())?;
        if self.is_copy
            && let Err(error) = identity::show_boot_id(run.pid)
        {
            tracing::error!(error = format!("{error:#}"), "boot id of another task");
        }
        member.runs += 1;
        member.state.status = ContainerStatus::Running;
        member.state.runtime_id = Some(runtime_id(&self.spec.task));
        member.state.pid = sandbox.host_pid(run.pid);
        member.state.started_at = Some(timestamp());
        member.state.finished_at = None;
        member.state.exit_code = None;
        member.state.reason = None;
        member.state.health = HealthStatus::Unknown;
        member.health = container.spec.health_check.clone().map(|check| Health::new(check, Instant::now()));
        member.began(run, oom_kills, means.poller);
        Ok(())
    }

    /// A container will not run (again).
    fn end(&mut self, index: usize, exit_code: Option<i32>, reason: Option<String>) {
        let member = &mut self.members[index];
        member.has_ended = true;
        member.run = None;
        member.state.status = ContainerStatus::Stopped;
        member.state.pid = None;
        member.state.exit_code = exit_code;
        member.state.reason = reason;
        member.state.finished_at = Some(timestamp());
        if let Some(prepared) = &member.prepared {
            prepared.cgroup.remove();
        }
        self.is_changed = true;
    }

    fn essential_exited(&mut self) {
        self.stop(StopCause {
            code: StopCode::EssentialContainerExited,
            reason: ESSENTIAL_EXITED.to_owned(),
        });
    }

    /// Records that a child of the supervisor has ended.
    pub fn reaped(&mut self, pid: Pid, exit_code: i32) {
        let now = Instant::now();
        for member in &mut self.members {
            if member.pid() == Some(pid) {
                if let Some(running) = &mut member.run {
                    running.exit = Some((exit_code, now));
                }
                // In a shared PID namespace the kernel leaves the others of the container alone.
                if self.pid_namespace.is_some()
                    && let Some(prepared) = &member.prepared
                {
                    prepared.cgroup.kill_all();
                }
            } else if member.check == Some(pid) {
                member.check = None;
                if let Some(health) = &mut member.health
                    && health.finish(exit_code == 0, now)
                {
                    member.state.health = health.status;
                    self.is_changed = true;
                }
            }
        }
    }

    /// Follows up containers that have exited. Whether anything happened.
    fn settle_exits(&mut self, now: Instant) -> bool {
        let exited = self.members.iter_mut().find_map(|member| {
            let (code, at) = member.run.as_ref()?.exit?;
            member.drain_output(now).then_some((member.index, code, at))
        });
        let Some((index, exit_code, at)) = exited else { return false };
        let member = &mut self.members[index];
        if let Some(check) = member.check.take() {
            kill_group(check);
        }
        let Some(running) = member.run.take() else { return false };
        let oom_kills = member.prepared.as_ref().map_or(0, |prepared| prepared.cgroup.oom_kills());
        // Whatever the exit code: ECS says so of a container that outlived its killed child, too
        // (amazon-ecs-agent issue 2467: the reason follows Docker's `OOMKilled`).
        let is_oom = oom_kills > running.oom_kills_before;
        let reason = is_oom.then(|| OUT_OF_MEMORY.to_owned());
        self.end(index, Some(exit_code), reason);
        let definition = &self.spec.containers[index].spec;
        if self.stop.is_some() {
            return true;
        }
        if may_restart(definition, exit_code, at.duration_since(running.started)) {
            let member = &mut self.members[index];
            member.has_ended = false;
            member.state.restart_count += 1;
            member.state.status = ContainerStatus::Pending;
            member.wants_restart = true;
        } else if definition.essential {
            self.essential_exited();
        }
        true
    }

    /// Tells containers to stop whose dependents have, and kills those that do not in time.
    fn stop_members(&mut self, now: Instant) {
        for index in 0..self.members.len() {
            let member = &self.members[index];
            if member.run.is_none() && !member.has_ended {
                self.end(index, None, None);
            }
        }
        let is_running: Vec<bool> = self.members.iter().map(|member| member.run.is_some()).collect();
        let may_stop: Vec<bool> = {
            let specs = self.specs();
            (0..specs.len()).map(|index| order::may_stop(&specs, &is_running, index)).collect()
        };
        for (member, container) in self.members.iter_mut().zip(&self.spec.containers) {
            if member.pid().is_none() || !may_stop[member.index] {
                continue;
            }
            let stopping = member.run.as_ref().and_then(|running| running.stopping.as_ref());
            let mut is_killed = stopping.is_some_and(|stopping| stopping.is_killed);
            let kill_at = match stopping {
                Some(stopping) => stopping.kill_at,
                None => {
                    member.signal(stop_signal(&container.image.stop_signal));
                    now + Duration::from_secs(container.spec.stop_timeout_secs.into())
                }
            };
            if now >= kill_at && !is_killed {
                member.signal(nix::libc::SIGKILL);
                is_killed = true;
            }
            if let Some(running) = &mut member.run {
                running.stopping = Some(Stopping { kill_at, is_killed });
            }
        }
    }

    /// Begins health checks that are due and ends those that take too long.
    fn check_health(&mut self, means: &Means, now: Instant) {
        for (member, definition) in self.members.iter_mut().zip(&self.spec.containers) {
            let Some(container) = member.pid() else { continue };
            let Some(health) = &mut member.health else { continue };
            let mut is_changed = false;
            if health.is_overdue(now) {
                is_changed = health.finish(false, now);
                if let Some(check) = member.check.take() {
                    kill_group(check);
                }
            } else if health.is_due(now)
                && let Some(prepared) = &member.prepared
            {
                health.begin(now);
                let inside = prepared.inside(means.sandbox, &definition.spec);
                match exec::start(container, &inside, health.command(), &means.sandbox.dev_null) {
                    Ok(pid) => member.check = Some(pid),
                    Err(error) => {
                        tracing::info!(error = format!("{error:#}"), "health check not started");
                        is_changed = health.finish(false, now);
                    }
                }
            }
            if is_changed {
                member.state.health = health.status;
                self.is_changed = true;
            }
        }
    }

    /// Removes the containers' control groups; `false` while one still has processes.
    pub fn remove_cgroups(&self) -> bool {
        let mut is_gone = true;
        for prepared in self.members.iter().filter_map(|member| member.prepared.as_ref()) {
            is_gone &= prepared.cgroup.remove();
        }
        is_gone
    }

    /// Kills everything at once.
    pub fn kill_all(&self) {
        for member in &self.members {
            member.signal(nix::libc::SIGKILL);
            if let Some(prepared) = &member.prepared {
                prepared.cgroup.kill_all();
            }
        }
    }
}

/// Whether a container is restarted after it ran for `ran`.
///
/// Source: "ContainerRestartPolicy" in the ECS API reference: not when it ran for less than the
/// attempt period, and not with an ignored exit code.
fn may_restart(definition: &ContainerSpec, exit_code: i32, ran: Duration) -> bool {
    definition.restart_policy.as_ref().is_some_and(|policy| {
        ran >= Duration::from_secs(policy.attempt_period_secs.into())
            && !policy.ignored_exit_codes.contains(&exit_code)
    })
}

/// Fargate's form: the task's id and ten digits.
fn runtime_id(task: &TaskId) -> String {
    let mut bytes = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{}-{:010}", task.as_str(), u64::from_ne_bytes(bytes) % 10_000_000_000)
}
