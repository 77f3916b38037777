//! Amazon ECR.

#[rustfmt::skip]
mod generated;

pub(crate) use generated::OPERATIONS;
pub use generated::*;
