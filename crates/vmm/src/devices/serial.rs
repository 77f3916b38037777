//! The serial port: what the guest writes goes to a file, and it is never sent anything.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// The most that a guest can write to its console in the life of the monitor, in bytes: a guest
/// that writes without end must not fill the host's disk.
const MAX_OUTPUT: u64 = 16 << 20;

/// A 16550-like port whose interrupt is raised by writing to an eventfd.
pub struct SerialPort {
    port: Serial<Line, NoEvents, Console>,
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Swallows what cannot be written: a console is for people, and must not stop the guest.
struct Console {
    /// `None`: nobody wants to read it.
    file: Option<File>,
    left: u64,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&bytes[..length]);
        }
        self.left -= length as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port's part of a snapshot (registers as in the 16550).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
}

impl SerialPort {
    #[must_use]
    pub fn new(line: EventFd, output: OwnedFd) -> Self {
        Self { port: Serial::new(Line(line), console(Some(output))) }
    }

    /// # Errors
    /// The state makes no sense or the interrupt cannot be raised.
    pub fn restore(line: EventFd, output: Option<OwnedFd>, state: &State) -> Result<Self, io::Error> {
        let state = SerialState {
            baud_divisor_low: state.baud_divisor[0],
            baud_divisor_high: state.baud_divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: Vec::new(),
        };
        Serial::from_state(&state, Line(line), NoEvents, console(output))
            .map(|port| Self { port })
            .map_err(|error| io::Error::other(error.to_string()))
    }

    #[must_use]
    pub fn save(&self) -> State {
        let state = self.port.state();
        State {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// Reads a register, 0 to 7.
    pub fn read(&mut self, register: u8) -> u8 {
        self.port.read(register)
    }

    /// Writes a register, 0 to 7.
    pub fn write(&mut self, register: u8, value: u8) {
        // The only possible error is the interrupt's: pending already, or the loopback's buffer is
        // full. Either way the guest gets what it would from hardware.
        let _ = self.port.write(register, value);
    }
}

fn console(output: Option<OwnedFd>) -> Console {
    Console { file: output.map(File::from), left: MAX_OUTPUT }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn output_goes_to_the_file_and_the_state_survives() {
        let mut file = tempfile::tempfile().unwrap();
        let line = || EventFd::new(0).unwrap();
        let mut port = SerialPort::new(line(), file.try_clone().unwrap().into());
        for byte in b"hello" {
            port.write(0, *byte);
        }
        port.write(7, 0x5a);
        let state = port.save();
        let mut port = SerialPort::restore(line(), Some(file.try_clone().unwrap().into()), &state).unwrap();
        assert_eq!(port.read(7), 0x5a);
        assert_eq!(port.save(), state);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_console_without_end_does_not_fill_the_disk() {
        let file = tempfile::tempfile().unwrap();
        let mut console = console(Some(file.try_clone().unwrap().into()));
        let block = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            console.write_all(&block).unwrap();
        }
        assert_eq!(file.metadata().unwrap().len(), MAX_OUTPUT);
    }
}
