//! The agent: runs tasks on one host as control assigns them.

pub mod instance;
pub mod net;
