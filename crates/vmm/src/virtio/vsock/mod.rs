//! Socket device (5.10), served in user space: who connects to one of the host's Unix sockets talks
//! to a port of the guest. The guest can open no connection; what it asks for is reset.
//!
//! Nothing that the guest sends makes this process keep more than a fixed amount for it: each of at
//! most [`MAX_CONNECTIONS`] connections keeps what the guest sent for a peer that does not read, up
//! to the credit it was given; packets to the guest are made when it has room for them, from each
//! connection in turn; of the resets for packets that belong to no connection, [`MAX_RESETS`] wait
//! and the others are lost. So its transmit queue is always worked on, and a connection that stalls
//! holds nobody else up.

mod connection;
mod packet;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use model::microvm::GUEST_CID;
use rustix::net::SocketFlags;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use self::connection::{Connection, Fate, write_header};
use self::packet::{HOST_CID, Header, Operation, TYPE_STREAM};
use super::buffers::Buffers;
use super::events::{AGAIN, EventFlags, Events};
use super::{DeviceError, DeviceState, DeviceType, Source, VirtioDevice, Vrings, queue, read_space};

/// Peers at once; the next ones wait to be accepted.
pub const MAX_CONNECTIONS: usize = 64;
/// The most resets that wait for the guest to have room for them.
const MAX_RESETS: usize = 256;
/// The most packets taken or given in one go.
const BATCH: usize = 256;

const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// `VIRTIO_VSOCK_F_STREAM` (5.10.3).
const VIRTIO_VSOCK_F_STREAM: u32 = 0;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7).
const EVENT_TRANSPORT_RESET: u32 = 0;

/// Keys of [`Events`]: below this, a listener's place; from here on, a connection's port.
const FIRST_PORT: u32 = 1 << 10;
/// Not a port, but "any" (vsock(7), `VMADDR_PORT_ANY`).
const PORT_ANY: u32 = u32::MAX;

/// A listening Unix stream socket, and the guest's port that its peers are connected to.
#[derive(Debug)]
pub struct VsockPort {
    pub listener: UnixListener,
    pub port: u32,
}

struct Listener {
    socket: UnixListener,
    port: u32,
    /// Somebody may wait to be accepted (edge-triggered).
    ready: bool,
}

/// What a snapshot keeps. Connections are not in it: a restored guest loses them.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    next_port: u32,
}

/// A restored guest still believes in its connections (5.10.6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransportReset {
    None,
    /// The guest is to be told.
    Due,
    /// It was told, when its event queue's index was this. When it has dealt with it, it makes the
    /// buffer available again. Until then nobody is accepted: the guest resets every connection
    /// that it has, however new.
    Told {
        event_index: u16,
    },
}

pub struct Vsock {
    events: Events,
    listeners: Vec<Listener>,
    /// By the host's port.
    connections: BTreeMap<u32, Connection>,
    /// Ports are not used again for as long as possible: the guest may remember them.
    next_port: u32,
    /// The connection that had its turn last.
    last_served: u32,
    resets: VecDeque<Header>,
    transport_reset: TransportReset,
}

impl Vsock {
    /// A device whose guest's context id is [`GUEST_CID`]. The listeners are made non-blocking.
    ///
    /// # Errors
    /// More than 1024 listeners, or the process may have no more open files.
    pub fn new(ports: Vec<VsockPort>) -> io::Result<Self> {
        let events = Events::new()?;
        if ports.len() > FIRST_PORT as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut listeners = Vec::with_capacity(ports.len());
        for (key, VsockPort { listener, port }) in (0..).zip(ports) {
            listener.set_nonblocking(true)?;
            events.add(&listener, key, EventFlags::IN)?;
            listeners.push(Listener { socket: listener, port, ready: true });
        }
        Ok(Self {
            events,
            listeners,
            connections: BTreeMap::new(),
            next_port: FIRST_PORT,
            last_served: 0,
            resets: VecDeque::new(),
            transport_reset: TransportReset::None,
        })
    }

    /// Does all that can be done for now.
    fn advance(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.tell_transport_reset(vrings)?;
        self.receive_packets(vrings)?;
        self.accept()?;
        self.send_packets(vrings)?;
        // What was sent may have been the last to somebody in whose place another can come.
        if self.connections.len() == MAX_CONNECTIONS
            && self.listeners.iter().any(|listener| listener.ready)
            && self.connections.values().any(Connection::is_abandoned)
        {
            self.events.call_again();
        }
        Ok(())
    }

    // ---- the host's side ----

    fn accept(&mut self) -> Result<(), DeviceError> {
        if self.transport_reset != TransportReset::None {
            return Ok(());
        }
        for index in 0..self.listeners.len() {
            while self.listeners[index].ready && self.make_room() {
                let listener = &mut self.listeners[index];
                match rustix::net::accept_with(&listener.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
                {
                    Ok(stream) => {
                        let guest_port = listener.port;
                        self.open(UnixStream::from(stream), guest_port)?;
                    }
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                    Err(rustix::io::Errno::AGAIN) => listener.ready = false,
                    // Out of descriptors or memory: tried again when a connection has ended.
                    Err(_) => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Whether one more connection may be made, if need be instead of one that nobody uses.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let abandoned = self.connections.iter().find(|(_, connection)| connection.is_abandoned());
        let Some((&port, _)) = abandoned else { return false };
        self.end(port, Fate::Reset);
        true
    }

    fn open(&mut self, stream: UnixStream, guest_port: u32) -> Result<(), DeviceError> {
        let port = self.allocate_port();
        self.events.add(&stream, u64::from(port), EventFlags::IN | EventFlags::RDHUP)?;
        self.connections.insert(port, Connection::new(stream, port, guest_port));
        Ok(())
    }

    fn allocate_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port + 1 == PORT_ANY { FIRST_PORT } else { port + 1 };
            if !self.connections.contains_key(&port) {
                return port;
            }
        }
    }

    /// Carries out what has become of a connection, and waits for room in its stream if it has to.
    fn settle(&mut self, port: u32, fate: Fate) -> Result<(), DeviceError> {
        if fate != Fate::Lives {
            self.end(port, fate);
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&port) else { return Ok(()) };
        let needs_room = connection.needs_room();
        if needs_room != connection.waits_for_room {
            let room = if needs_room { EventFlags::OUT } else { EventFlags::empty() };
            let what = EventFlags::IN | EventFlags::RDHUP | room;
            self.events.change(connection.stream(), u64::from(port), what)?;
            connection.waits_for_room = needs_room;
        }
        Ok(())
    }

    fn end(&mut self, port: u32, fate: Fate) {
        // Closing the stream ends the wait for it.
        if let Some(connection) = self.connections.remove(&port)
            && fate == Fate::Reset
        {
            self.send_reset(connection.reset());
        }
    }

    /// If there are too many already, the guest learns it when it next uses the connection.
    fn send_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    // ---- the guest's side ----

    /// Works on the transmit queue.
    fn receive_packets(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        let mut used = false;
        let mut emptied = false;
        for _ in 0..BATCH {
            let memory = &vrings.memory;
            let transmit = &mut vrings.queues[TRANSMIT];
            let Some(chain) = queue::next_chain(transmit, memory)? else {
                if queue::arm(transmit, memory)? == transmit.next_avail() {
                    emptied = true;
                    break;
                }
                continue;
            };
            let buffers = Buffers::readable(memory, chain)?;
            self.receive_packet(&buffers)?;
            transmit.add_used(memory, buffers.head(), 0)?;
            used = true;
        }
        if used {
            vrings.notify(TRANSMIT)?;
        }
        if !emptied {
            self.events.call_again();
        }
        Ok(())
    }

    fn receive_packet(&mut self, buffers: &Buffers<'_>) -> Result<(), DeviceError> {
        let mut bytes = [0; Header::SIZE];
        if buffers.read_at(0, &mut bytes) < bytes.len() {
            return Err(DeviceError::Request("a packet is shorter than its header"));
        }
        let header = Header::from_bytes(&bytes);
        if header.src_cid != GUEST_CID {
            // It speaks for somebody else (5.10.6.4.1).
            return Ok(());
        }
        let port = header.dst_port;
        let known = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        match self.connections.get_mut(&port) {
            Some(connection) if known && connection.matches(&header) => {
                let fate = connection.receive(&header, buffers);
                self.settle(port, fate)
            }
            _ => {
                if header.operation != Operation::Reset as u16 {
                    self.send_reset(header.refusal());
                }
                Ok(())
            }
        }
    }

    /// Fills the receive queue.
    fn send_packets(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        let mut used = false;
        let mut done = false;
        for _ in 0..BATCH {
            let sender = self.next_sender();
            if self.resets.is_empty() && sender.is_none() {
                done = true;
                break;
            }
            let memory = &vrings.memory;
            let receive = &mut vrings.queues[RECEIVE];
            let Some(chain) = queue::next_chain(receive, memory)? else {
                if queue::arm(receive, memory)? == receive.next_avail() {
                    // The guest will notify us of new buffers.
                    done = true;
                    break;
                }
                continue;
            };
            let buffers = Buffers::writable(memory, chain)?;
            let len = if let Some(reset) = self.resets.pop_front() {
                Some(write_header(&reset, &buffers)?)
            } else if let Some(port) = sender
                && let Some(connection) = self.connections.get_mut(&port)
            {
                self.last_served = port;
                connection.send(&buffers)?
            } else {
                None
            };
            match len {
                Some(len) => {
                    // At most a header and the most payload.
                    receive.add_used(memory, buffers.head(), len as u32)?;
                    used = true;
                }
                None => queue::give_back(receive, 1),
            }
        }
        if used {
            vrings.notify(RECEIVE)?;
        }
        if !done {
            self.events.call_again();
        }
        Ok(())
    }

    /// The next connection, after the one that had its turn, that has something to send.
    fn next_sender(&self) -> Option<u32> {
        let after = self.connections.range(self.last_served.saturating_add(1)..);
        let before = self.connections.range(..=self.last_served);
        after.chain(before).find(|(_, connection)| connection.has_something_to_send()).map(|(port, _)| *port)
    }

    fn tell_transport_reset(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        let memory = &vrings.memory;
        let event = &mut vrings.queues[EVENT];
        if self.transport_reset == TransportReset::Due {
            let event_index = queue::available_index(event, memory)?;
            let Some(chain) = queue::next_chain(event, memory)? else {
                // If there is a buffer by now, the guest was not asked to tell.
                if queue::arm(event, memory)? != event.next_avail() {
                    self.events.call_again();
                }
                return Ok(());
            };
            let buffers = Buffers::writable(memory, chain)?;
            if buffers.write_at(0, &EVENT_TRANSPORT_RESET.to_le_bytes()) < 4 {
                return Err(DeviceError::Request("an event buffer has no room for an event"));
            }
            event.add_used(memory, buffers.head(), 4)?;
            self.transport_reset = TransportReset::Told { event_index };
            vrings.notify(EVENT)?;
        }
        if let TransportReset::Told { event_index } = self.transport_reset {
            let (memory, event) = (&vrings.memory, &vrings.queues[EVENT]);
            if queue::arm(event, memory)? != event_index {
                self.transport_reset = TransportReset::None;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// 5.10.4: the guest's context id.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&GUEST_CID.to_le_bytes(), offset, data);
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.events.as_raw_fd(), token: 0 }]
    }

    fn notified(&mut self, _queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        self.advance(vrings)
    }

    fn ready(&mut self, _token: u32, vrings: &mut Vrings) -> Result<(), DeviceError> {
        for (key, what) in self.events.take()? {
            if key == AGAIN {
                continue;
            }
            // Listeners' and connections' keys are 32 bits wide.
            let port = key as u32;
            if port < FIRST_PORT {
                self.listeners[port as usize].ready = true;
            } else if let Some(connection) = self.connections.get_mut(&port) {
                let fate = connection.stream_ready(what);
                self.settle(port, fate)?;
            }
        }
        self.advance(vrings)
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.resets.clear();
        self.transport_reset = TransportReset::None;
        for listener in &mut self.listeners {
            // What was announced before is not announced again.
            listener.ready = true;
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(State { next_port: self.next_port })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Vsock(state) = state else {
            return Err(DeviceError::Request("the state is not a socket device's"));
        };
        if !(FIRST_PORT..PORT_ANY).contains(&state.next_port) {
            return Err(DeviceError::Request("a port is not one"));
        }
        self.reset();
        self.next_port = state.next_port;
        self.transport_reset = TransportReset::Due;
        Ok(())
    }
}
