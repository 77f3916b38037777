//! What Coracle knows, as plain data: identifiers, desired and observed records, and the task state
//! machine. No I/O, no clock, no runtime: every other crate may import this one.
//!
//! The facts of a task have one writer each (`docs/architecture.md`):
//! - [`task::Task`] is *intent*, written by API handlers;
//! - [`assignment::Assignment`] is what a host shall run, written by the reconciler;
//! - [`observation::Observation`] is what a host saw, written by host sessions.
//!
//! So it is with a task's snapshots ([`snapshot`]).

pub mod arn;
pub mod assignment;
pub mod cluster;
pub mod definition;
pub mod host;
pub mod id;
pub mod microvm;
pub mod network;
pub mod observation;
pub mod sandbox;
pub mod secret;
pub mod snapshot;
pub mod spec;
pub mod status;
pub mod task;
pub mod time;

pub use arn::Arn;
pub use id::{
    AccountId, ClusterName, EniId, HostId, Region, SecurityGroupId, SnapshotId, SubnetId, TaskId, VpcId,
};
pub use secret::Secret;
pub use status::{HealthStatus, StopCode, TaskStatus};
pub use time::Timestamp;
