//! The agent: what one host does.

pub mod image;
