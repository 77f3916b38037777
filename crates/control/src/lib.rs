//! Control: the brain. API handlers write intent, the reconciler writes assignments, host sessions
//! write observations; nobody calls back up (`docs/architecture.md`).

pub mod api;
pub mod clock;
pub mod credentials;
pub mod keys;
pub mod random;
pub mod registry;
pub mod telemetry;
