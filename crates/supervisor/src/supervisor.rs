//! The supervisor's only loop: wait, take in what happened, decide, tell the agent.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model::sandbox::{
    FREEZE_SECONDS, FromSupervisor, Identity, SandboxPhase, SandboxSpec, SandboxState, ToSupervisor,
};
use model::status::StopCause;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::guest::cgroups;
use crate::guest::clock::Clock;
use crate::link::Connection;
use crate::poller::{Poller, Source};
use crate::sandbox::{Sandbox, write_atomically};
use crate::seccomp::Filter;
use crate::sys;
use crate::task::{Means, Task};

/// `DIR/state.json`: the last state, for an agent that finds the supervisor dead.
const STATE_FILE: &str = "state.json";
/// How often a released supervisor looks whether everything is gone, and for how long.
const RELEASE_RETRY: Duration = Duration::from_millis(20);
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// Memory goes back to the kernel when nothing has happened for this long.
const TRIM_AFTER: Duration = Duration::from_millis(250);
const FREEZE_LIMIT: Duration = Duration::from_secs(FREEZE_SECONDS);

/// A sandbox, from readiness to its end.
pub struct Supervisor {
    sandbox: Sandbox,
    poller: Poller,
    signals: SignalFd,
    default_filter: Rc<Filter>,
    connection: Option<Connection>,
    task: Option<Task>,
    /// A stop that came before the task.
    early_stop: Option<StopCause>,
    sequence: u64,
    /// The phase that was last reported.
    phase: SandboxPhase,
    /// When the agent has said the last word.
    released: Option<Instant>,
    clock: Clock,
    /// Since when no process of the task may run.
    frozen: Option<Instant>,
    /// Whether the heap was trimmed since something happened.
    is_trimmed: bool,
}

impl Supervisor {
    /// Prepares everything that can be prepared without a task.
    pub fn new(sandbox: Sandbox) -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let poller = Poller::new()?;
        poller.add(&sandbox.listener, Source::Listener)?;
        poller.add(&signals, Source::Signals)?;
        // The default set's only capability that widens the filter.
        let default_filter = Rc::new(Filter::for_capabilities(["CAP_SYS_CHROOT"])?);
        let supervisor = Self {
            sandbox,
            poller,
            signals,
            default_filter,
            connection: None,
            task: None,
            early_stop: None,
            sequence: 0,
            phase: SandboxPhase::Idle,
            released: None,
            clock: Clock::default(),
            frozen: None,
            is_trimmed: false,
        };
        supervisor.persist()?;
        Ok(supervisor)
    }

    /// Serves until released.
    pub fn run(mut self) -> Result<()> {
        while !self.is_over() {
            let timeout = self.timeout();
            let events = self.poller.wait(timeout)?;
            if events.is_empty() && !self.is_trimmed {
                sys::trim_memory();
                self.is_trimmed = true;
            }
            for source in &events {
                self.handle(*source)?;
            }
            self.advance();
            self.report();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let task = self.task.as_ref().and_then(|task| task.deadline(now));
        let mut timeout = task.map(|deadline| deadline.saturating_duration_since(now));
        if let Some(since) = self.frozen {
            // Nothing else is done meanwhile.
            timeout = Some((since + FREEZE_LIMIT).saturating_duration_since(now));
        }
        if !self.is_trimmed || self.released.is_some() {
            let soon = if self.released.is_some() { RELEASE_RETRY } else { TRIM_AFTER };
            timeout = Some(timeout.map_or(soon, |timeout| timeout.min(soon)));
        }
        timeout
    }

    fn handle(&mut self, source: Source) -> Result<()> {
        self.is_trimmed = false;
        match source {
            Source::Listener => self.accept()?,
            Source::Connection => self.receive(),
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Output { container, output } => {
                if let Some(member) = self.task.as_mut().and_then(|task| task.members.get_mut(container)) {
                    member.read_output(output, &self.poller);
                }
            }
        }
        Ok(())
    }

    /// Takes a connection, in place of the one before.
    ///
    /// # Errors
    /// There will be no more.
    fn accept(&mut self) -> Result<()> {
        let connection = match self.sandbox.listener.accept() {
            Ok(Some(connection)) => connection,
            Ok(None) => return Ok(()),
            Err(errno) => {
                tracing::error!(%errno, "connection not accepted");
                return self.listen_anew();
            }
        };
        // Closing the old one takes it out of the poller.
        self.connection = None;
        if let Err(errno) = self.poller.add(&connection.stream, Source::Connection) {
            tracing::error!(%errno, "connection not watched");
            return Ok(());
        }
        self.connection = Some(connection);
        for member in self.task.iter_mut().flat_map(|task| &mut task.members) {
            if let Some(logs) = &mut member.logs {
                logs.rewind();
            }
        }
        self.send_state();
        Ok(())
    }

    fn listen_anew(&mut self) -> Result<()> {
        if self.sandbox.listener.renew()? {
            self.poller.add(&self.sandbox.listener, Source::Listener)?;
        }
        Ok(())
    }

    fn receive(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match connection.receive() {
            Ok(messages) => VecDeque::from(messages).into_iter().for_each(|message| self.obey(message)),
            Err(error) => {
                tracing::info!(error = format!("{error:#}"), "connection ended");
                self.connection = None;
            }
        }
    }

    fn obey(&mut self, message: ToSupervisor) {
        match message {
            ToSupervisor::Run { spec } => self.take_on(*spec),
            ToSupervisor::Stop { cause } => match &mut self.task {
                Some(task) => task.stop(cause),
                None => {
                    if self.early_stop.is_none() {
                        self.early_stop = Some(cause);
                        self.changed();
                    }
                }
            },
            ToSupervisor::AckLogs { container, upto } => {
                let members = self.task.iter_mut().flat_map(|task| &mut task.members);
                for member in members.filter(|member| member.state.name == container) {
                    if let Some(logs) = &mut member.logs {
                        logs.acknowledge(upto);
                    }
                    member.resume_output(&self.poller);
                }
            }
            ToSupervisor::Clock { now } if self.sandbox.is_microvm() => {
                if let Err(error) = self.clock.follow(now) {
                    tracing::error!(error = format!("{error:#}"), "clock not set");
                }
            }
            // The host's clock is everyone's.
            ToSupervisor::Clock { .. } => {}
            ToSupervisor::Release => self.released = Some(Instant::now()),
            ToSupervisor::Freeze => {
                let failure = self.freeze().err().map(|error| format!("{error:#}"));
                if failure.is_some() {
                    self.thaw();
                }
                self.send(&FromSupervisor::Frozen { failure });
            }
            ToSupervisor::Thaw => self.thaw(),
            ToSupervisor::Adopt { identity } => self.adopt(*identity),
        }
    }

    fn freeze(&mut self) -> Result<()> {
        if !self.sandbox.is_microvm() {
            bail!("only a task in a microVM can be frozen");
        }
        // A container that is just being started or stopped would hold this process up.
        if self.task.as_ref().map(Task::phase) != Some(SandboxPhase::Running) {
            bail!("not all containers of the task have started, or they are being stopped");
        }
        self.frozen = Some(Instant::now());
        cgroups::freeze()
    }

    fn thaw(&mut self) {
        if self.frozen.take().is_some()
            && let Err(error) = cgroups::thaw()
        {
            tracing::error!(error = format!("{error:#}"), "task not thawed");
        }
    }

    fn adopt(&mut self, identity: Identity) {
        if let Some(task) = &mut self.task
            && *task.id() != identity.task
        {
            let mut means = Means {
                sandbox: &mut self.sandbox,
                poller: &self.poller,
                default_filter: &self.default_filter,
            };
            task.adopt(identity, &mut means);
        }
        self.thaw();
    }

    fn take_on(&mut self, spec: SandboxSpec) {
        if let Some(task) = &self.task {
            if *task.id() != spec.task {
                tracing::error!(
                    task = task.id().as_str(),
                    other = spec.task.as_str(),
                    "a second task refused"
                );
            }
            return;
        }
        let stop = self.early_stop.take();
        let mut means =
            Means { sandbox: &mut self.sandbox, poller: &self.poller, default_filter: &self.default_filter };
        self.task = Some(Task::new(spec, stop, &mut means));
    }

    fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                // A real-time signal has no name and makes this an error, after the fact.
                Ok(_) | Err(_) => continue,
            };
            if let Some(task) = &mut self.task {
                task.reaped(pid, code);
            }
        }
    }

    fn advance(&mut self) {
        if let Some(since) = self.frozen {
            // Nobody waits for an agent that does not come back, and a task that is to stop runs.
            let is_stopping = self.task.as_ref().is_some_and(|task| task.stop.is_some());
            if since.elapsed() < FREEZE_LIMIT && !is_stopping {
                return;
            }
            self.thaw();
        }
        let Some(task) = &mut self.task else { return };
        let mut means =
            Means { sandbox: &mut self.sandbox, poller: &self.poller, default_filter: &self.default_filter };
        task.advance(&mut means);
    }

    /// Tells the agent, and the state file, what is new.
    fn report(&mut self) {
        if let Some(task) = &mut self.task {
            let phase = task.phase();
            if std::mem::take(&mut task.is_changed) || phase != self.phase {
                self.phase = phase;
                self.changed();
            }
        }
        self.send_logs();
        if let Some(connection) = &mut self.connection {
            let result = connection.flush().and_then(|()| {
                let writing = connection.wants_to_write();
                Ok(self.poller.set_writing(&connection.stream, Source::Connection, writing)?)
            });
            if let Err(error) = result {
                tracing::info!(error = format!("{error:#}"), "connection lost");
                self.connection = None;
            }
        }
    }

    fn changed(&mut self) {
        if self.task.is_none() && self.early_stop.is_some() {
            self.phase = SandboxPhase::Ended;
        }
        self.sequence += 1;
        if let Err(error) = self.persist() {
            tracing::error!(error = format!("{error:#}"), "state not written");
        }
        self.send_state();
    }

    fn state(&self) -> SandboxState {
        let members = self.task.iter().flat_map(|task| &task.members);
        SandboxState {
            task: self.task.as_ref().map(|task| task.id().clone()),
            sequence: self.sequence,
            phase: self.phase,
            containers: members
                .map(|member| {
                    let mut state = member.state.clone();
                    if let Some(logs) = &member.logs {
                        (state.log_end, state.log_acknowledged) = (logs.end(), logs.acknowledged());
                    }
                    state
                })
                .collect(),
            stop: self.task.as_ref().map_or_else(|| self.early_stop.clone(), |task| task.stop.clone()),
        }
    }

    fn persist(&self) -> Result<()> {
        let document = serde_json::to_vec(&self.state())?;
        write_atomically(&self.sandbox.dir, STATE_FILE, &document).context(STATE_FILE)
    }

    fn send_state(&mut self) {
        self.send(&FromSupervisor::State { state: self.state() });
    }

    fn send(&mut self, message: &FromSupervisor) {
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.queue(message)
        {
            tracing::error!(error = format!("{error:#}"), "message not sent");
        }
    }

    fn send_logs(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        for member in self.task.iter_mut().flat_map(|task| &mut task.members) {
            let Some(logs) = &mut member.logs else { continue };
            while connection.has_room() {
                let Some(batch) = logs.next_batch(&member.state.name) else { break };
                if let Err(error) = connection.queue(&FromSupervisor::Logs { batch }) {
                    tracing::error!(error = format!("{error:#}"), "logs not sent");
                }
            }
        }
    }

    /// Whether this process may end. What cannot be removed in time is left to the agent; with a
    /// machine everything goes.
    fn is_over(&self) -> bool {
        self.released
            .is_some_and(|at| self.sandbox.is_microvm() || self.is_clean() || at.elapsed() > RELEASE_PATIENCE)
    }

    /// Ends what still runs; whether nothing is left but this process.
    fn is_clean(&self) -> bool {
        let Some(task) = &self.task else { return true };
        if task.members.iter().any(|member| member.pid().is_some()) {
            task.kill_all();
            return false;
        }
        task.remove_cgroups()
    }
}
