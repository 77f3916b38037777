//! AWS Security Token Service.

#[rustfmt::skip]
mod generated;

pub(crate) use generated::OPERATIONS;
pub use generated::*;
