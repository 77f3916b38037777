//! The host processes of sandboxes: supervisors and microVM monitors, started ahead of their task,
//! found again after a restart, ended by pid.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// How long a supervisor or monitor may take to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the kernel may take to end a killed process and all its containers.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a supervisor did not start or did not end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot start {}", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("it did not become ready: {0}")]
    NotReady(String),
    #[error("cannot read {}", path.display())]
    Record { path: PathBuf, source: io::Error },
    #[error("process {pid} did not end within {} seconds of SIGKILL", END_TIMEOUT.as_secs())]
    Immortal { pid: i32 },
    #[error("cannot signal process {pid}")]
    Signal { pid: i32, source: io::Error },
}

/// A process, told apart from a later one with the same pid by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot (proc(5)).
    pub start_time: u64,
}

/// Starts a supervisor for the container sandbox in `dir` and waits until it listens.
///
/// # Errors
/// It cannot be started, or says why it cannot be ready.
pub async fn start_supervisor(
    program: &Path,
    dir: &Path,
    uid_base: u32,
    scratch: &Path,
) -> Result<ProcessId, ProcessError> {
    let mut command = Command::new(program);
    command.arg("sandbox").arg("--dir").arg(dir);
    command.arg("--uid-base").arg(uid_base.to_string()).arg("--scratch").arg(scratch);
    start(program, command, &dir.join("supervisor.json")).await
}

/// Starts a microVM monitor for the sandbox in `dir`, in a jail of its own with this host user, and
/// waits until it listens.
///
/// # Errors
/// It cannot be started, or the jailer says why it cannot be ready.
pub async fn start_monitor(
    jailer: &Path,
    monitor: &Path,
    dir: &Path,
    uid: u32,
) -> Result<ProcessId, ProcessError> {
    let mut command = Command::new(jailer);
    command.arg("--dir").arg(dir).arg("--uid").arg(uid.to_string()).arg("--monitor").arg(monitor);
    start(jailer, command, &dir.join("monitor.json")).await
}

/// Runs a program that leaves a process behind, says in `record` which, and ends when that is ready.
async fn start(program: &Path, mut command: Command, record: &Path) -> Result<ProcessId, ProcessError> {
    let starting = command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProcessError::Spawn { program: program.to_owned(), source })?;
    let output = tokio::time::timeout(START_TIMEOUT, starting.wait_with_output())
        .await
        .map_err(|_| {
            ProcessError::NotReady(format!("nothing was heard within {} s", START_TIMEOUT.as_secs()))
        })?
        .map_err(|source| ProcessError::Spawn { program: program.to_owned(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ProcessError::NotReady(format!("{}: {}", output.status, said.trim())));
    }
    let read = || serde_json::from_slice(&std::fs::read(record)?).map_err(io::Error::other);
    read().map_err(|source| ProcessError::Record { path: record.to_owned(), source })
}

impl ProcessId {
    /// Whether this very process still exists (a zombie does not count).
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, start_time)| start_time == self.start_time && state != 'Z')
    }

    /// Opens what `/proc` says of the process: its `pagemap`, for example.
    ///
    /// # Errors
    /// It is gone.
    pub fn open(self, what: &str) -> io::Result<File> {
        let file = File::open(format!("/proc/{}/{what}", self.pid))?;
        // It was this one's, then: an open file stays with its process.
        if self.is_alive() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Kills the process, and does not wait.
    pub fn kill_now(self) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_alive()
        {
            // It may have ended in between.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }

    /// Kills the process and waits until it is gone. One that is gone already is no error.
    ///
    /// # Errors
    /// It cannot be signalled or does not end.
    pub async fn kill(self) -> Result<(), ProcessError> {
        let failed =
            |source: rustix::io::Errno| ProcessError::Signal { pid: self.pid, source: source.into() };
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        // The handle names one process for good, so the check after opening it is not a race.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(failed(error)),
        }
        self.wait(END_TIMEOUT).await
    }

    /// Waits until the process is gone.
    ///
    /// # Errors
    /// It is not gone within `limit`.
    pub async fn wait(self, limit: Duration) -> Result<(), ProcessError> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        while self.is_alive() {
            if tokio::time::Instant::now() >= deadline {
                return Err(ProcessError::Immortal { pid: self.pid });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// State and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold spaces and parentheses; the fields follow its last parenthesis.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// Processes of sandboxes below `dir` by what their command lines say: found even when one was
/// still starting as the agent was killed.
#[must_use]
pub fn find_below(dir: &Path) -> Vec<(PathBuf, ProcessId)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(command_line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut arguments = command_line.split(|b| *b == 0).map(String::from_utf8_lossy);
        let sandbox = arguments.by_ref().skip_while(|a| a != "--dir").nth(1);
        let Some(sandbox) = sandbox.map(|s| PathBuf::from(s.into_owned())) else { continue };
        if sandbox.parent() == Some(dir)
            && let Some((_, start_time)) = stat(pid)
        {
            found.push((sandbox, ProcessId { pid, start_time }));
        }
    }
    found
}
