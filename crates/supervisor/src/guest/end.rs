//! How a machine ends: powered off when its work is done, reset when its supervisor cannot go on,
//! which the monitor reports as a crash.

use std::fs::OpenOptions;
use std::io::Write;

use rustix::system::{RebootCommand, reboot};

use crate::sys;

/// Of such weight that the kernel shows it on the console even when told to be quiet (syslog(2)).
const CRITICAL: &str = "<2>";

/// Powers the machine off. Nothing is written back: its disk ends with the task.
pub fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    reset("the machine cannot be powered off")
}

/// Says why in the kernel's log and resets the machine.
pub fn reset(reason: &str) -> ! {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One record is one write, and has one line.
        let line = format!("{CRITICAL}coracle-supervisor: {}", reason.replace('\n', " "));
        let _ = log.write_all(line.as_bytes());
    }
    let _ = reboot(RebootCommand::Restart);
    // The end of the first process makes the kernel panic, which resets the machine, too.
    sys::exit_now(1)
}

/// Makes a panic of the first process reset the machine. Its children panic as ever.
pub fn reset_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        if super::is_first_process() {
            reset(&panic.to_string());
        }
    }));
}
