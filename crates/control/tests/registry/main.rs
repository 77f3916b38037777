//! The registry as its clients see it.

mod clients;
mod content;
mod ecr;
mod harness;
mod images;
mod restart;
mod sweep;
mod uploads;
