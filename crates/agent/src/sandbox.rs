//! What isolates a task: a container sandbox, or a microVM. Both are one process on the host (the
//! supervisor, or the monitor in whose machine the supervisor is) in a directory of its own, and in
//! both the supervisor is spoken to in the same way.

pub mod connection;
pub mod microvm;
pub mod monitor;
pub mod process;
pub mod template;
