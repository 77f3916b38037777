//! What the monitor has to say besides its answers: lines on its standard error. In the jail that leads
//! nowhere (a guest must not be able to fill a disk); they are for tests and for who debugs it outside.

use std::error::Error;

/// Says that something went wrong, and why.
pub fn warning(what: &str, why: &dyn Error) {
    line(&format!("{what}: {}", chain(why)));
}

/// Says something.
pub fn line(text: &str) {
    use std::io::Write;
    if cfg!(fuzzing) {
        // Guests that do wrong are all there is then.
        return;
    }
    // A closed standard error is no reason to stop.
    let _ = std::io::stderr().write_all(format!("coracle-vmm: {text}\n").as_bytes());
}

/// An error and all its sources.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
