//! The monitor's main loop: it waits for the agent and for the machine's end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use kvm_ioctls::Kvm;
use model::microvm::{Ended, Request, Response};
use rustix::event::{PollFd, PollFlags, poll};

use crate::builder;
use crate::control::{Control, Incoming};
use crate::ending::Ending;
use crate::files::Files;
use crate::log;
use crate::machine::Machine;
use crate::snapshot::pages::PageMap;
use crate::snapshot::{restore, save};

const NO_MACHINE: &str = "there is no machine yet";

/// What the monitor was started with.
pub struct Monitor {
    host: Kvm,
    control: Control,
    ending: Ending,
    machine: Option<Machine>,
    started_in_us: u64,
}

impl Monitor {
    /// # Errors
    /// The host gives no more descriptors.
    pub fn new(host: Kvm, listener: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            host,
            control: Control::new(listener),
            ending: Ending::new()?,
            machine: None,
            started_in_us: 0,
        })
    }

    /// Serves the agent until the machine has ended.
    ///
    /// # Errors
    /// The kernel cannot wait for descriptors.
    pub fn run(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = self.ending.get() {
                return Ok(ended);
            }
            let (called, spoken_to) = self.wait()?;
            if spoken_to {
                match self.control.receive() {
                    Incoming::Request(request, files) => self.answer(request, files),
                    Incoming::Malformed(message) => self.control.send(&Response::Failed { message }),
                    Incoming::Nothing => {}
                }
            }
            let mut agent_is_gone = self.control.connection().is_none();
            if called {
                self.control.accept();
                agent_is_gone = true;
            }
            if agent_is_gone && let Some(machine) = &mut self.machine {
                // Who paused it cannot set it going any more.
                machine.resume();
            }
        }
    }

    /// Whether someone connects, and whether something came on the connection.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut waiting = vec![readable(self.ending.as_fd()), readable(self.control.listener().as_fd())];
        waiting.extend(self.control.connection().map(|connection| readable(connection.as_fd())));
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| waiting.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok((is_ready(1), is_ready(2)))
    }

    fn answer(&mut self, request: Request, files: Files) {
        let response = self.handle(request, files).unwrap_or_else(|message| Response::Failed { message });
        self.control.send(&response);
    }

    fn handle(&mut self, request: Request, mut files: Files) -> Result<Response, String> {
        let began = Instant::now();
        if let Request::Boot(_) | Request::Restore(_) = &request
            && self.machine.is_some()
        {
            return Err("there is a machine already".into());
        }
        match request {
            Request::Boot(config) => {
                let machine = builder::boot(&self.host, &config, files, self.ending.clone())
                    .map_err(|error| log::chain(&error))?;
                self.start(machine, began);
            }
            Request::Restore(config) => {
                let machine = restore::restore(&self.host, &config, files, self.ending.clone())
                    .map_err(|error| log::chain(&error))?;
                self.start(machine, began);
            }
            Request::Pause => self.machine()?.pause(),
            Request::Resume => self.machine()?.resume(),
            Request::Snapshot { state, memory, pages } => {
                let machine = self.machine.as_ref().ok_or(NO_MACHINE)?;
                if !machine.is_paused() {
                    return Err("only a paused machine can be written down".into());
                }
                let mut take = |file| files.take(file).map_err(|error| error.to_string());
                let (state, memory) = (take(state)?, take(memory)?);
                let pages = pages.map(take).transpose()?.map(PageMap::new);
                save::save(&self.host, machine, state, memory, pages.as_ref())
                    .map_err(|error| log::chain(&error))?;
            }
            Request::Balloon { target_mib } => self.machine()?.set_balloon(target_mib),
            Request::Describe => {
                let started_in_us = self.started_in_us;
                return Ok(Response::Description(self.machine()?.describe(started_in_us)));
            }
            Request::Stop => {
                self.machine = None;
                self.ending.tell(Ended::Stopped);
            }
        }
        Ok(Response::Done)
    }

    fn start(&mut self, mut machine: Machine, began: Instant) {
        machine.resume();
        self.started_in_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.machine = Some(machine);
    }

    fn machine(&mut self) -> Result<&mut Machine, String> {
        self.machine.as_mut().ok_or_else(|| NO_MACHINE.into())
    }

    /// Tells the connected agent how the machine ended.
    pub fn tell(&mut self, ended: &Ended) {
        self.control.send(&Response::Ended(ended.clone()));
    }
}
