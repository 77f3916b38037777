//! The threads in which virtio devices do their work.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use model::microvm::Ended;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ending::Ending;
use crate::gate::{self, Gate, Wanted};
use crate::seccomp::ThreadKind;
use crate::virtio::Source;
use crate::virtio::mmio::MmioDevice;

/// Events taken from the kernel at once.
const BATCH: usize = 32;

/// What is waited for, packed into epoll's 64 bits: kind, device, and queue or token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The gate wants something.
    Gate,
    /// The device became active or ceased to be.
    Changed {
        device: usize,
    },
    Queue {
        device: usize,
        queue: usize,
    },
    Source {
        device: usize,
        token: u32,
    },
}

impl Event {
    fn pack(self) -> EventData {
        let (kind, device, number) = match self {
            Self::Gate => (0, 0, 0),
            Self::Changed { device } => (1, device, 0),
            Self::Queue { device, queue } => (2, device, queue as u32),
            Self::Source { device, token } => (3, device, token),
        };
        EventData::new_u64((kind << 48) | ((device as u64) << 32) | u64::from(number))
    }

    fn unpack(data: EventData) -> Self {
        let data = data.u64();
        let (device, number) = ((data >> 32) as u16 as usize, data as u32);
        match data >> 48 {
            0 => Self::Gate,
            1 => Self::Changed { device },
            2 => Self::Queue { device, queue: number as usize },
            _ => Self::Source { device, token: number },
        }
    }
}

/// A running or resting thread that serves devices.
pub struct DeviceThread {
    gate: Arc<Gate>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts the thread, resting.
    ///
    /// # Errors
    /// The host gives no more threads or descriptors.
    pub fn spawn(devices: Vec<Arc<MmioDevice>>, ending: Ending) -> io::Result<Self> {
        let gate = Arc::new(Gate::new(Wanted::Rest));
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let mut served = Served::new(devices, wake.clone())?;
        let thread = gate::spawn("device", ThreadKind::Device, gate.clone(), ending, move || {
            served.serve().unwrap_or_else(|error| {
                let message = format!("a device thread cannot wait for events: {error}");
                Some(Ended::Failed { message })
            })
        })?;
        Ok(Self { gate, wake, thread: Some(thread) })
    }

    /// Asks the thread; [`DeviceThread::wait_until_resting`] waits until it does.
    pub fn ask(&self, wanted: Wanted) {
        self.gate.ask(wanted);
        // Fails only if it is readable already.
        let _ = self.wake.write(1);
    }

    pub fn wait_until_resting(&self) {
        self.gate.wait_until_resting();
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.ask(Wanted::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was told of already.
            let _ = thread.join();
        }
    }
}

struct Served {
    epoll: OwnedFd,
    wake: Arc<EventFd>,
    devices: Vec<Device>,
}

struct Device {
    device: Arc<MmioDevice>,
    sources: Vec<Source>,
    /// As this thread knows it; [`crate::virtio::mmio::Transport::activation`].
    activation: Option<u64>,
}

/// A descriptor that outlives the call.
#[allow(unsafe_code)]
fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as its owner, which is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// A device's source, which stays open for as long as the device.
#[allow(unsafe_code)]
fn borrow_source(source: &Source) -> BorrowedFd<'_> {
    // SAFETY: `VirtioDevice::sources` gives "the same ones for good", and `Served` keeps the device.
    unsafe { BorrowedFd::borrow_raw(source.fd) }
}

impl Served {
    fn new(devices: Vec<Arc<MmioDevice>>, wake: Arc<EventFd>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, borrow(&*wake), Event::Gate.pack(), EventFlags::IN)?;
        let mut served = Vec::new();
        for (index, device) in devices.into_iter().enumerate() {
            let transport = device.lock();
            let changed = Event::Changed { device: index };
            epoll::add(&epoll, borrow(transport.changed()), changed.pack(), EventFlags::IN)?;
            for (queue, event) in transport.notifications().iter().enumerate() {
                let notified = Event::Queue { device: index, queue };
                epoll::add(&epoll, borrow(event), notified.pack(), EventFlags::IN)?;
            }
            let sources = transport.device().sources();
            drop(transport);
            served.push(Device { device, sources, activation: None });
        }
        Ok(Self { epoll, wake, devices: served })
    }

    /// Waits for events once and handles them; says how the machine has ended, if one was that.
    fn serve(&mut self) -> io::Result<Option<Ended>> {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; BATCH];
        let count = match epoll::wait(&self.epoll, &mut events[..], None) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if let Some(ended) = self.handle(Event::unpack(event.data))? {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    fn handle(&mut self, event: Event) -> io::Result<Option<Ended>> {
        let index = match event {
            Event::Gate => {
                let _ = self.wake.read();
                return Ok(None);
            }
            Event::Changed { device } | Event::Queue { device, .. } | Event::Source { device, .. } => device,
        };
        let Some(served) = self.devices.get_mut(index) else { return Ok(None) };
        let mut transport = served.device.lock();
        match event {
            // Level-triggered: emptied before the work, so that what comes during it is seen.
            Event::Changed { .. } => drop(transport.changed().read()),
            Event::Queue { queue, .. } => drop(transport.notifications()[queue].read()),
            Event::Gate | Event::Source { .. } => {}
        }
        let activation = transport.activation();
        if activation != served.activation {
            let (was, is) = (served.activation.is_some(), activation.is_some());
            for source in &served.sources {
                let fd = borrow_source(source);
                if was && !is {
                    epoll::delete(&self.epoll, fd)?;
                } else if is && !was {
                    let ready = Event::Source { device: index, token: source.token };
                    epoll::add(&self.epoll, fd, ready.pack(), EventFlags::IN)?;
                }
            }
            served.activation = activation;
            // What the driver made available before it said that it was ready.
            for queue in 0..transport.notifications().len() {
                transport.notified(queue);
            }
        } else {
            match event {
                Event::Queue { queue, .. } => transport.notified(queue),
                Event::Source { token, .. } => transport.ready(token),
                Event::Gate | Event::Changed { .. } => {}
            }
        }
        Ok(transport.device().gone().map(|device| Ended::DeviceGone { device: device.to_owned() }))
    }
}
