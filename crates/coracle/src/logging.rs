//! The server's own log, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// `CORACLE_LOG` chooses what is logged, in tracing's filter syntax; warnings and errors by default.
pub fn start() {
    let filter = EnvFilter::try_from_env("CORACLE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Colours are for people: a file or the journal keeps them as noise.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
