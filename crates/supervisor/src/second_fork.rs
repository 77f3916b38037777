//! Processes in namespaces that the supervisor itself is not in.

use anyhow::{Result, bail};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::sys;

/// Starts a process that runs `program` where `enter` leads, and ends with the code that it returns.
/// A PID namespace is entered by children only: a process in between does `enter`, and by its own end
/// leaves its child to the supervisor (PID 1 here).
///
/// # Errors
/// `failure`, if `enter` fails (its own error is logged), or there is no room for another process.
pub fn start(
    failure: &'static str,
    enter: impl FnOnce() -> Result<()>,
    program: impl FnOnce() -> i32,
) -> Result<Pid> {
    let (pid_read, pid_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let Some(middle) = sys::fork()? else {
        let code = match enter().and_then(|()| Ok(sys::fork()?)) {
            Ok(Some(child)) => {
                let _ = rustix::io::write(&pid_write, &child.as_raw().to_ne_bytes());
                0
            }
            Ok(None) => program(),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "{failure}");
                1
            }
        };
        sys::exit_now(code);
    };
    drop(pid_write);
    let mut bytes = [0u8; 4];
    let length = rustix::io::read(&pid_read, &mut bytes).unwrap_or(0);
    waitpid(middle, None)?;
    if length != bytes.len() {
        bail!(failure);
    }
    Ok(Pid::from_raw(i32::from_ne_bytes(bytes)))
}
