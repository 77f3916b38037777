//! One connection: a Unix stream socket on the host's side, a vsock stream on the guest's.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use model::microvm::GUEST_CID;

use super::packet::{
    HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::virtio::DeviceError;
use crate::virtio::buffers::{Buffers, Vectors};
use crate::virtio::events::EventFlags;

/// How much of what the guest has sent is kept for a peer that does not read, in bytes: the credit
/// that the guest gets (`buf_alloc`).
pub(super) const BUFFER: u32 = 64 * 1024;
/// The most payload in one packet to the guest, in bytes; as much as Linux puts into one
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
const MAX_PAYLOAD: u32 = 64 * 1024;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    Lives,
    /// It is over, and the guest shall know.
    Reset,
    /// It is over, and the guest knows.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest was asked, or is to be, and has not answered.
    Requested,
    Established,
    /// The guest has forgotten the connection; what it had sent before is still to be read.
    Lingering,
}

pub(super) struct Connection {
    stream: UnixStream,
    host_port: u32,
    guest_port: u32,
    phase: Phase,

    /// From the guest, until the peer takes it; at most [`BUFFER`].
    unread: VecDeque<u8>,
    /// Bytes got from the guest, taken by the peer, and the latter as the guest was last told; all
    /// counted from the beginning, modulo 2^32.
    received: u32,
    forwarded: u32,
    forwarded_told: u32,
    /// Bytes sent to the guest, and what it says of its buffer. It may lie: it gets more or less
    /// then, and nothing else comes of it.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,

    /// The stream may have something to read (edge-triggered).
    readable: bool,
    /// The peer will send no more, and everything that it sent was read.
    peer_sends_no_more: bool,
    /// The peer has closed the stream.
    peer_left: bool,
    /// `SHUTDOWN_*` that the guest has said.
    guest_shutdown: u32,
    /// `SHUTDOWN_*` that the guest was told.
    shutdown_told: u32,
    /// The stream's direction to the peer was shut down.
    finished: bool,

    request_due: bool,
    update_due: bool,
    credit_requested: bool,
    /// Whether the device's [`Events`](crate::virtio::events::Events) wait for room in the stream.
    pub(super) waits_for_room: bool,
}

impl Connection {
    /// A connection of a peer's to a guest's port. `stream` does not block.
    pub(super) fn new(stream: UnixStream, host_port: u32, guest_port: u32) -> Self {
        Self {
            stream,
            host_port,
            guest_port,
            phase: Phase::Requested,
            unread: VecDeque::new(),
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            readable: false,
            peer_sends_no_more: false,
            peer_left: false,
            guest_shutdown: 0,
            shutdown_told: 0,
            finished: false,
            request_due: true,
            update_due: false,
            credit_requested: false,
            waits_for_room: false,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether a packet of these ports is of this connection, as far as the guest knows of it.
    pub(super) fn matches(&self, header: &Header) -> bool {
        self.guest_port == header.src_port && self.phase != Phase::Lingering
    }

    /// Whether only the guest, which was told or has never answered, keeps it from being over.
    pub(super) fn is_abandoned(&self) -> bool {
        self.peer_left && (self.phase == Phase::Requested || self.shutdown_told == SHUTDOWN_BOTH)
    }

    /// Whether there is something for the peer, so that room in the stream has to be waited for.
    pub(super) fn needs_room(&self) -> bool {
        !self.unread.is_empty()
    }

    /// How much is kept for the peer, in bytes.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.unread.len()
    }

    /// A packet to the guest that ends the connection.
    pub(super) fn reset(&self) -> Header {
        self.header(Operation::Reset)
    }

    // ---- from the guest ----

    /// Takes a packet from the guest. The payload follows the header in `buffers`.
    pub(super) fn receive(&mut self, header: &Header, buffers: &Buffers<'_>) -> Fate {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            // Not before: the answer to a request is an update, even one that grants nothing.
            self.credit_requested = false;
        }
        match (Operation::from_number(header.operation), self.phase) {
            (Some(Operation::Reset), _) => {
                self.phase = Phase::Lingering;
                let _ = self.stream.shutdown(Shutdown::Read);
                if self.unread.is_empty() { Fate::Gone } else { Fate::Lives }
            }
            (Some(Operation::Response), Phase::Requested) if !self.request_due => {
                self.phase = Phase::Established;
                Fate::Lives
            }
            (Some(Operation::Data), Phase::Established) => self.receive_data(header, buffers),
            (Some(Operation::Shutdown), Phase::Established) => self.receive_shutdown(header.flags),
            (Some(Operation::CreditUpdate), Phase::Established) => Fate::Lives,
            (Some(Operation::CreditRequest), Phase::Established) => {
                self.update_due = true;
                Fate::Lives
            }
            _ => Fate::Reset,
        }
    }

    fn receive_data(&mut self, header: &Header, buffers: &Buffers<'_>) -> Fate {
        let start = Header::SIZE;
        let available = buffers.len().saturating_sub(start);
        let credit = BUFFER - self.received.wrapping_sub(self.forwarded).min(BUFFER);
        // `len` is at most `BUFFER` from here on.
        let len = header.len as usize;
        if header.len > credit || len > available || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Fate::Reset;
        }
        self.received = self.received.wrapping_add(header.len);
        let mut taken = 0;
        if self.unread.is_empty() && !self.peer_left {
            let mut payload = Vectors::new();
            payload.push(buffers, start..start + len);
            match payload.send(self.stream.as_fd()) {
                Ok(count) => taken = count.min(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.peer_left = true,
            }
        }
        if self.peer_left {
            // Nobody will read it. The guest learns that by a shutdown; until it stops, it sends.
            taken = len;
        }
        if taken < len {
            let mut rest = vec![0; len - taken];
            buffers.read_at(start + taken, &mut rest);
            self.unread.extend(rest);
        }
        // At most `BUFFER`.
        self.forward(taken as u32);
        Fate::Lives
    }

    fn receive_shutdown(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // The peer's writing fails from now on. It may have left already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.finish()
    }

    /// Counts what the peer has taken, and tells the guest when its credit runs low.
    fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        let credit_as_told = BUFFER - self.received.wrapping_sub(self.forwarded_told).min(BUFFER);
        if credit_as_told < BUFFER / 2 && self.forwarded != self.forwarded_told {
            self.update_due = true;
        }
    }

    /// Passes the end of the guest's data on, once all before it was.
    fn finish(&mut self) -> Fate {
        if !self.unread.is_empty() {
            return Fate::Lives;
        }
        if self.phase == Phase::Lingering {
            return Fate::Gone;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.finished {
            self.finished = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        // "clean disconnect": all was delivered, and the reset that Linux's close waits for (5.10.6.5).
        if self.guest_shutdown == SHUTDOWN_BOTH { Fate::Reset } else { Fate::Lives }
    }

    // ---- the stream ----

    /// The stream is ready for something.
    pub(super) fn stream_ready(&mut self, what: EventFlags) -> Fate {
        if what.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.readable = true;
        }
        if what.intersects(EventFlags::HUP | EventFlags::ERR) {
            // What it sent before is delivered all the same.
            self.peer_left = true;
        }
        self.write_unread()
    }

    fn write_unread(&mut self) -> Fate {
        let mut count = 0;
        while !self.unread.is_empty() && !self.peer_left {
            let (first, _) = self.unread.as_slices();
            match rustix::net::send(
                &self.stream,
                first,
                rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
            ) {
                Ok(taken) => {
                    self.unread.drain(..taken);
                    count += taken;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => self.peer_left = true,
            }
        }
        if self.peer_left {
            count += self.unread.len();
            self.unread.clear();
        }
        if self.unread.is_empty() {
            // Most connections are idle most of the time.
            self.unread = VecDeque::new();
        }
        // At most `BUFFER`.
        self.forward(count as u32);
        self.finish()
    }

    // ---- to the guest ----

    /// Whether [`Connection::send`] has something to try.
    pub(super) fn has_something_to_send(&self) -> bool {
        match self.phase {
            Phase::Requested => self.request_due,
            Phase::Established => {
                self.update_due
                    || self.shutdown_due() != 0
                    || self.may_read() && (self.credit() > 0 || !self.credit_requested)
            }
            Phase::Lingering => false,
        }
    }

    /// Writes a packet into a chain of the guest's; returns its length, or none if there is nothing
    /// to send after all.
    ///
    /// # Errors
    /// The chain is too short.
    pub(super) fn send(&mut self, buffers: &Buffers<'_>) -> Result<Option<usize>, DeviceError> {
        if self.phase == Phase::Requested {
            self.request_due = false;
            return self.send_control(Operation::Request, 0, buffers).map(Some);
        }
        if self.may_read() && self.credit() > 0 {
            if let Some(len) = self.send_data(buffers)? {
                return Ok(Some(len));
            }
        } else if self.may_read() && !self.credit_requested {
            self.credit_requested = true;
            return self.send_control(Operation::CreditRequest, 0, buffers).map(Some);
        }
        let shutdown = self.shutdown_due();
        if shutdown != 0 {
            self.shutdown_told |= shutdown;
            return self.send_control(Operation::Shutdown, self.shutdown_told, buffers).map(Some);
        }
        if self.update_due {
            return self.send_control(Operation::CreditUpdate, 0, buffers).map(Some);
        }
        Ok(None)
    }

    fn send_control(
        &mut self,
        operation: Operation,
        flags: u32,
        buffers: &Buffers<'_>,
    ) -> Result<usize, DeviceError> {
        let header = Header { flags, ..self.header(operation) };
        self.update_due = false;
        self.forwarded_told = self.forwarded;
        write_header(&header, buffers)
    }

    fn send_data(&mut self, buffers: &Buffers<'_>) -> Result<Option<usize>, DeviceError> {
        let room = buffers.len().saturating_sub(Header::SIZE);
        let len = room.min(self.credit().min(MAX_PAYLOAD) as usize);
        if len == 0 {
            return Err(DeviceError::Request("a receive buffer has no room for data"));
        }
        let mut payload = Vectors::new();
        payload.push(buffers, Header::SIZE..Header::SIZE + len);
        match payload.read(self.stream.as_fd()) {
            // At most `MAX_PAYLOAD`.
            Ok(count) if count > 0 => {
                let header = Header { len: count as u32, ..self.header(Operation::Data) };
                self.sent = self.sent.wrapping_add(header.len);
                self.update_due = false;
                self.forwarded_told = self.forwarded;
                write_header(&header, buffers)?;
                return Ok(Some(Header::SIZE + count));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The end, or an error, after which nothing more comes either.
            Ok(_) | Err(_) => self.peer_sends_no_more = true,
        }
        self.readable = false;
        Ok(None)
    }

    /// `SHUTDOWN_*` that the guest is still to be told.
    fn shutdown_due(&self) -> u32 {
        let send = if self.peer_sends_no_more { SHUTDOWN_SEND } else { 0 };
        let receive = if self.peer_left { SHUTDOWN_RECEIVE } else { 0 };
        (send | receive) & !self.shutdown_told
    }

    /// Whether the stream is to be read, credit allowing.
    fn may_read(&self) -> bool {
        self.phase == Phase::Established
            && self.readable
            && !self.peer_sends_no_more
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// How many bytes the guest has room for, as far as it says (5.10.6.3).
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    fn header(&self, operation: Operation) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len: 0,
            kind: TYPE_STREAM,
            operation: operation as u16,
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }
}

/// Writes a header to where a chain begins; returns its length.
///
/// # Errors
/// The chain is too short.
pub(super) fn write_header(header: &Header, buffers: &Buffers<'_>) -> Result<usize, DeviceError> {
    if buffers.write_at(0, &header.to_bytes()) < Header::SIZE {
        return Err(DeviceError::Request("a receive buffer has no room for a header"));
    }
    Ok(Header::SIZE)
}
