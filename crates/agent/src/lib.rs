//! The agent: runs tasks on one host as control assigns them.

pub mod cgroup;
pub mod host;
pub mod instance;
pub mod loop_device;
pub mod net;
pub mod scratch;
