//! What isolates a task. Today the container sandbox; the microVM will be a second variant beside
//! it that speaks the same protocol.

pub mod connection;
pub mod process;
