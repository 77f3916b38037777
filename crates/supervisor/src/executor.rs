//! The last steps before a container's program runs: find it, filter system calls, execute.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use crate::rootfs::describe;
use crate::seccomp::Filter;
use crate::sys;

/// Starts the texts by which [`Launch::validate`] reports through libcontainer.
pub const START_FAILURE: &str = "exec: ";
/// What a program that cannot be executed after all exits with.
const EXEC_FAILED: i32 = 255;

/// libcontainer calls this in the container's first process.
#[derive(Clone)]
pub struct Launch {
    pub filter: Rc<Filter>,
    /// Where the sandbox's init was bound into the container, when the task asks for one.
    pub init: Option<&'static str>,
}

impl Executor for Launch {
    /// Finds the program, with the container's user, capabilities and directory in force.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (arguments, environment) = command(spec);
        let program = arguments.first().ok_or_else(|| invalid("no command specified".to_owned()))?;
        find_program(program, &environment).map(drop).map_err(invalid)
    }

    /// The environment goes to `execve` directly.
    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (mut arguments, environment) = command(spec);
        let mut program = arguments.first().cloned().unwrap_or_default();
        if let Some(init) = self.init {
            arguments.splice(0..0, [init, "init", "--"].map(str::to_owned));
            program = init.to_owned();
        }
        let text = run(&program, &arguments, &environment, &self.filter);
        // The program's output is the container's log: this is where its user looks.
        eprintln!("exec {program}: {text}");
        sys::exit_now(EXEC_FAILED)
    }
}

fn invalid(text: String) -> ExecutorValidationError {
    ExecutorValidationError::ArgValidationError(format!("{START_FAILURE}{text}"))
}

fn command(spec: &Spec) -> (Vec<String>, Vec<String>) {
    let process = spec.process().as_ref();
    (
        process.and_then(|process| process.args().clone()).unwrap_or_default(),
        process.and_then(|process| process.env().clone()).unwrap_or_default(),
    )
}

/// Replaces this process by the program; returns why it could not.
pub fn run(program: &str, arguments: &[String], environment: &[String], filter: &Filter) -> String {
    let path = match find_program(program, environment) {
        Ok(path) => path,
        Err(text) => return text,
    };
    let strings = |list: &[String]| -> Result<Vec<CString>, _> {
        list.iter().map(|text| CString::new(text.as_bytes())).collect()
    };
    let (Ok(path), Ok(arguments), Ok(environment)) =
        (CString::new(path.as_os_str().as_encoded_bytes()), strings(arguments), strings(environment))
    else {
        return "an argument holds a NUL byte".to_owned();
    };
    sys::reset_signals();
    if let Err(error) = filter.apply() {
        return format!("system call filter: {error}");
    }
    let Err(errno) = nix::unistd::execve(&path, &arguments, &environment);
    describe(rustix::io::Errno::from_raw_os_error(errno as i32))
}

/// The program that a name means, as Go's `exec.LookPath` finds it, which words Docker's errors.
pub fn find_program(name: &str, environment: &[String]) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = Path::new(name);
        return match executable(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(errno @ (rustix::io::Errno::ACCESS | rustix::io::Errno::ISDIR)) => {
                Err(format!("{name:?}: {}", describe(errno)))
            }
            Err(errno) => Err(format!("{name:?}: stat {name}: {}", describe(errno))),
        };
    }
    let search = environment.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for dir in search.split(':').filter(|dir| !name.is_empty() && !dir.is_empty()) {
        let path = Path::new(dir).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(rustix::io::Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    let reason = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("{name:?}: {reason}"))
}

fn executable(path: &Path) -> Result<(), rustix::io::Errno> {
    use rustix::fs::{AtFlags, CWD, accessat};
    let metadata = path.metadata().map_err(|error| {
        error.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error)
    })?;
    if metadata.is_dir() {
        return Err(rustix::io::Errno::ISDIR);
    }
    // The effective ids count; root may execute only what someone may.
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(rustix::io::Errno::ACCESS);
    }
    accessat(CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS)
}
