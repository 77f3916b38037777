//! The server's own log, on standard error.

use tracing_subscriber::EnvFilter;

/// `CORACLE_LOG` chooses what is logged, in tracing's filter syntax; warnings and errors by default.
pub fn start() {
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
