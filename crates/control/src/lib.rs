//! The brain of Coracle: the AWS APIs, the reconciler, host sessions and telemetry.

pub mod telemetry;
