//! What isolates a task: a container sandbox, or a microVM. Both are one process on the host (the
//! supervisor, or the monitor in whose machine the supervisor is) in a directory of its own, and in
//! both the supervisor is spoken to in the same way.

pub mod connection;
pub mod microvm;
pub mod monitor;
pub mod process;
pub mod template;

use std::fs::File;
use std::os::fd::AsRawFd;

/// A path of the socket `name` in `dir`, however long the directory's own path is, for as long as
/// `dir` is open: a Unix socket's address has only 108 bytes (unix(7)).
fn socket_path(dir: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())
}
