//! Writing a resting machine down, and going on from there: in its own place, or as a copy.
//!
//! Two files: the state (`format`), and the memory, a sparse image of it from address 0 without the
//! hole, which restored machines map privately.

pub mod format;
pub mod host;
pub mod pager;
pub mod pages;
pub mod restore;
pub mod save;
pub mod vcpu;
