//! `init -- PROGRAM…`: PID 1 of a container whose task asks for one (`initProcessEnabled`).
//! Forwards signals to the program, reaps what is left behind, and ends as the program ends.

use std::ffi::CString;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execve, setpgid};

use crate::executor::find_program;
use crate::sys;

/// Runs the program and returns the code to exit with: the program's, or 128 and its signal.
pub fn run(arguments: &[String]) -> i32 {
    let environment: Vec<String> = std::env::vars_os()
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
        .collect();
    let mut all = SigSet::all();
    // These stop or crash a process itself; they are not messages to pass on.
    for signal in
        [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGABRT]
    {
        all.remove(signal);
    }
    if sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).is_err() {
        return 255;
    }
    let child = match sys::fork() {
        Ok(Some(child)) => child,
        Ok(None) => execute(arguments, &environment),
        Err(_) => return 255,
    };
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    return code;
                }
            }
            Ok(signal) => {
                let _ = kill(child, signal);
            }
            Err(_) => {}
        }
    }
}

/// Reaps everything that has ended; the exit code if `child` is among it.
fn reap(child: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

fn execute(arguments: &[String], environment: &[String]) -> ! {
    // A group of its own, so that a terminal's signals reach the program and not its init twice.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
    sys::reset_signals();
    let name = arguments.first().map_or("", String::as_str);
    let text = match find_program(name, environment) {
        Err(text) => text,
        Ok(path) => {
            let strings = |list: &[String]| -> Vec<CString> {
                list.iter().filter_map(|text| CString::new(text.as_bytes()).ok()).collect()
            };
            match CString::new(path.as_os_str().as_encoded_bytes()) {
                Ok(path) => {
                    let Err(errno) = execve(&path, &strings(arguments), &strings(environment));
                    errno.desc().to_lowercase()
                }
                Err(_) => "the path holds a NUL byte".to_owned(),
            }
        }
    };
    eprintln!("exec {name}: {text}");
    sys::exit_now(127)
}
