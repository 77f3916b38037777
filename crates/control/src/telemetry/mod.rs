//! What running tasks say about themselves: the log store and the language that searches it.

pub mod filter;
pub mod logs;
