//! A container of the task as the supervisor follows it: its state, its run, its output.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::sandbox::{ContainerState, SandboxContainer};
use model::status::ContainerStatus;
use model::{HealthStatus, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::container::{Prepared, Run};
use crate::health::Health;
use crate::logs::{Lines, LogBuffer};
use crate::order::Known;
use crate::poller::{Poller, Source};

/// How long output may stay open after its container's end, before it is given up: only a process
/// that the kernel cannot kill holds it.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// An event of several lines is complete when nothing was added to it for this long.
const EVENT_IDLE: Duration = Duration::from_secs(1);
const READ_SIZE: usize = 64 * 1024;

/// A container of the task.
pub struct Member {
    pub index: usize,
    pub state: ContainerState,
    pub prepared: Option<Prepared>,
    pub run: Option<Running>,
    pub runs: u32,
    /// It will not run (again).
    pub has_ended: bool,
    /// Its restart policy has decided so.
    pub wants_restart: bool,
    pub logs: Option<LogBuffer>,
    last_line: Instant,
    pub health: Option<Health>,
    /// The health check that runs.
    pub check: Option<Pid>,
}

/// A run of the container.
pub struct Running {
    pub run: Run,
    outputs: Vec<Output>,
    pub started: Instant,
    /// Its out-of-memory kills before this run.
    pub oom_kills_before: u64,
    /// Its exit code, and when it was known.
    pub exit: Option<(i32, Instant)>,
    pub stopping: Option<Stopping>,
}

/// A stop under way.
pub struct Stopping {
    pub kill_at: Instant,
    pub is_killed: bool,
}

struct Output {
    /// `None` at its end.
    file: Option<File>,
    lines: Lines,
    /// Waiting for the agent to make room.
    is_paused: bool,
}

/// The time now, for records.
pub fn timestamp() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Member {
    pub fn new(index: usize, container: &SandboxContainer) -> Self {
        let spec = &container.spec;
        Self {
            index,
            state: ContainerState {
                name: spec.name.clone(),
                status: ContainerStatus::Pending,
                runtime_id: None,
                pid: None,
                exit_code: None,
                reason: None,
                health: HealthStatus::Unknown,
                restart_count: 0,
                started_at: None,
                finished_at: None,
                log_end: 0,
                log_acknowledged: 0,
            },
            prepared: None,
            run: None,
            runs: 0,
            has_ended: false,
            wants_restart: false,
            logs: spec.log.as_ref().map(|log| LogBuffer::new(log, spec.tty)),
            last_line: Instant::now(),
            health: None,
            check: None,
        }
    }

    /// What order is decided on.
    pub fn known(&self) -> Known {
        Known {
            has_started: self.state.started_at.is_some(),
            has_ended: self.has_ended,
            exit_code: self.state.exit_code,
            health: self.state.health,
            started: self.run.as_ref().map(|running| running.started),
        }
    }

    /// Takes over a run that has just been started.
    pub fn began(&mut self, mut run: Run, oom_kills_before: u64, poller: &Poller) {
        let mut outputs = Vec::new();
        for (number, file) in run.outputs.drain(..).enumerate() {
            let source = Source::Output { container: self.index, output: number };
            if let Err(errno) = poller.add(&file, source) {
                tracing::error!(%errno, "output lost");
            }
            outputs.push(Output { file: Some(file), lines: Lines::default(), is_paused: false });
        }
        let started = Instant::now();
        self.run = Some(Running { run, outputs, started, oom_kills_before, exit: None, stopping: None });
    }

    pub fn pid(&self) -> Option<Pid> {
        self.run.as_ref().filter(|running| running.exit.is_none()).map(|running| running.run.pid)
    }

    /// The container goes on in another task, which begins at `now`: what it wrote until then is
    /// another's to tell, and times before it are none of that task's.
    pub fn begin_anew(&mut self, runtime_id: String, now: Timestamp, poller: &Poller) {
        if let Some(logs) = &mut self.logs {
            logs.forget();
        }
        let state = &mut self.state;
        state.restart_count = 0;
        for time in [&mut state.started_at, &mut state.finished_at] {
            *time = time.map(|_| now);
        }
        if state.runtime_id.is_some() {
            state.runtime_id = Some(runtime_id);
        }
        self.resume_output(poller);
    }

    /// Reads what one output has. Reading stops, and the container waits, while the buffer is full.
    pub fn read_output(&mut self, number: usize, poller: &Poller) {
        let Some(output) = self.run.as_mut().and_then(|running| running.outputs.get_mut(number)) else {
            return;
        };
        let Some(file) = &mut output.file else { return };
        if self.logs.as_ref().is_some_and(LogBuffer::is_full) {
            if !output.is_paused && poller.remove(&*file).is_ok() {
                output.is_paused = true;
            }
            return;
        }
        let mut chunk = [0u8; READ_SIZE];
        match file.read(&mut chunk) {
            Ok(length @ 1..) => {
                let at = timestamp();
                if let Some(logs) = &mut self.logs {
                    output.lines.push(&chunk[..length], |line| logs.line(line, at));
                    self.last_line = Instant::now();
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The end of a pipe is 0, that of a terminal an error.
            Ok(_) | Err(_) => self.close_output(number),
        }
    }

    fn close_output(&mut self, number: usize) {
        let Some(output) = self.run.as_mut().and_then(|running| running.outputs.get_mut(number)) else {
            return;
        };
        if output.file.take().is_some()
            && let Some(logs) = &mut self.logs
        {
            let at = timestamp();
            output.lines.finish(|line| logs.line(line, at));
        }
    }

    /// Goes on reading after the agent has made room.
    pub fn resume_output(&mut self, poller: &Poller) {
        if self.logs.as_ref().is_some_and(LogBuffer::is_full) {
            return;
        }
        let container = self.index;
        for (number, output) in self.run.iter_mut().flat_map(|running| &mut running.outputs).enumerate() {
            if output.is_paused
                && let Some(file) = &output.file
                && poller.add(file, Source::Output { container, output: number }).is_ok()
            {
                output.is_paused = false;
            }
        }
    }

    /// Reads the rest of the output of a container that has ended: at most what its pipes hold.
    /// Whether everything was read (or given up).
    pub fn drain_output(&mut self, now: Instant) -> bool {
        let mut chunk = [0u8; READ_SIZE];
        let Some(running) = &mut self.run else { return true };
        let is_given_up = running.exit.is_some_and(|(_, at)| now >= at + OUTPUT_GRACE);
        let mut open = Vec::new();
        for (number, output) in running.outputs.iter_mut().enumerate() {
            while let Some(file) = &mut output.file {
                match file.read(&mut chunk) {
                    Ok(length @ 1..) => {
                        let at = timestamp();
                        if let Some(logs) = &mut self.logs {
                            output.lines.push(&chunk[..length], |line| logs.line(line, at));
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock && !is_given_up => {
                        open.push(number);
                        break;
                    }
                    Ok(_) | Err(_) => {
                        output.file = None;
                        if let Some(logs) = &mut self.logs {
                            let at = timestamp();
                            output.lines.finish(|line| logs.line(line, at));
                        }
                    }
                }
            }
        }
        if open.is_empty()
            && let Some(logs) = &mut self.logs
        {
            logs.end_event();
        }
        open.is_empty()
    }

    /// Ends an event of several lines that has grown no more.
    pub fn end_idle_event(&mut self, now: Instant) {
        if let Some(logs) = &mut self.logs
            && logs.has_open_event()
            && now >= self.last_line + EVENT_IDLE
        {
            logs.end_event();
        }
    }

    /// Sends a signal to the container's first process.
    pub fn signal(&self, signal: i32) {
        let Some(pid) = self.pid() else { return };
        let result = match Signal::try_from(signal) {
            Ok(signal) => kill(pid, signal),
            // A real-time signal.
            Err(_) => crate::sys::kill(pid, signal),
        };
        if let Err(errno) = result {
            tracing::info!(%errno, signal, "signal not delivered");
        }
    }

    /// When something is to be done without an event.
    pub fn deadline(&self) -> Option<Instant> {
        let running = self.run.as_ref();
        let kill = running
            .filter(|running| running.exit.is_none())
            .and_then(|running| running.stopping.as_ref())
            .filter(|stopping| !stopping.is_killed)
            .map(|stopping| stopping.kill_at);
        let grace = running.and_then(|running| running.exit).map(|(_, at)| at + OUTPUT_GRACE);
        let health = self.health.as_ref().filter(|_| self.pid().is_some()).map(Health::deadline);
        let event =
            self.logs.as_ref().filter(|logs| logs.has_open_event()).map(|_| self.last_line + EVENT_IDLE);
        [kill, grace, health, event].into_iter().flatten().min()
    }
}

/// Kills a process that leads a group, and the group.
pub fn kill_group(leader: Pid) {
    let _ = kill(Pid::from_raw(-leader.as_raw()), Signal::SIGKILL);
    let _ = kill(leader, Signal::SIGKILL);
}

/// The number of an image's stop signal: `SIGTERM`, `TERM`, `15`, `RTMIN+3`.
pub fn stop_signal(name: &str) -> i32 {
    let upper = name.trim().to_uppercase();
    let upper = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = upper.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { Signal::SIGTERM as i32 };
    }
    // The C library keeps the first two real-time signals for itself, and names count from there.
    if let Some(offset) = upper.strip_prefix("RTMIN") {
        let offset =
            if offset.is_empty() { Some(0) } else { offset.strip_prefix('+').and_then(|n| n.parse().ok()) };
        return offset.filter(|n| (0..=30).contains(n)).map_or(Signal::SIGTERM as i32, |n: i32| 34 + n);
    }
    if let Some(offset) = upper.strip_prefix("RTMAX") {
        let offset =
            if offset.is_empty() { Some(0) } else { offset.strip_prefix('-').and_then(|n| n.parse().ok()) };
        return offset.filter(|n| (0..=30).contains(n)).map_or(Signal::SIGTERM as i32, |n: i32| 64 - n);
    }
    format!("SIG{upper}").parse::<Signal>().unwrap_or(Signal::SIGTERM) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals() {
        for (name, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("99", 15),
            ("nonsense", 15),
            ("RTMIN+99", 15),
        ] {
            assert_eq!(stop_signal(name), number, "{name}");
        }
    }
}
