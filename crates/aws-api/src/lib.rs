//! The AWS wire: types, operation tables, validation, errors, protocols and signatures.
//!
//! Everything here is sans-I/O and synchronous. Per service there is a module ([`ecs`], [`ecr`],
//! [`logs`], [`sts`]) with the shapes' types, `operation` (a unit struct per served operation),
//! `error` (a constructor per error shape) and `values` (the enumerations' strings), all generated
//! by `cargo xtask codegen` from `codegen.json` and botocore's service models.
//!
//! How a server uses it: [`route`] finds the service, operation and protocol of a request,
//! [`sigv4::Verifier`] checks who sent it, [`Routed::decode`] validates and parses its body, and
//! [`Protocol`] encodes the answer or the [`Error`].

mod blob;
pub mod client;
pub mod error;
pub mod eventstream;
#[rustfmt::skip]
mod generated;
mod operation;
pub mod protocol;
mod query;
mod route;
pub mod schema;
mod sensitive;
mod service;
pub mod sigv4;
mod timestamp;
pub mod validate;

pub mod ecr;
pub mod ecs;
pub mod logs;
pub mod sts;

pub use blob::Blob;
pub use error::{Error, Fault};
pub use generated::Service;
pub use operation::{Operation, OperationInfo};
pub use protocol::Protocol;
pub use route::{Routed, route};
pub use schema::Schema;
pub use sensitive::Sensitive;
pub use service::ServiceInfo;
pub use timestamp::Timestamp;
