//! The agent's socket: one message per packet, open files attached.
//!
//! What cannot be understood is answered with `Failed` and changes nothing. There is one
//! connection at a time; a new one takes the place of the old one, whose agent is gone.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use model::microvm::{MAX_FILES, MAX_MESSAGE, Request, Response};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    SocketFlags,
};

use crate::files::Files;

/// The listening socket and the current connection.
pub struct Control {
    listener: OwnedFd,
    connection: Option<OwnedFd>,
}

/// What came.
#[derive(Debug)]
pub enum Incoming {
    Request(Request, Files),
    /// To be answered with `Failed`.
    Malformed(String),
    /// The agent has closed the connection, or there was nothing after all.
    Nothing,
}

impl Control {
    /// Takes a listening socket of type `SOCK_SEQPACKET`.
    #[must_use]
    pub fn new(listener: OwnedFd) -> Self {
        Self { listener, connection: None }
    }

    #[must_use]
    pub fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    #[must_use]
    pub fn connection(&self) -> Option<&OwnedFd> {
        self.connection.as_ref()
    }

    /// Accepts a connection, which takes the place of the one before.
    pub fn accept(&mut self) {
        match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(connection) => self.connection = Some(connection),
            // The agent has gone again, or its descriptors have run out: it will try once more.
            Err(error) => crate::log::warning("no connection", &std::io::Error::from(error)),
        }
    }

    /// Receives one message from the connection, which is ready.
    pub fn receive(&mut self) -> Incoming {
        let Some(connection) = &self.connection else { return Incoming::Nothing };
        match receive(connection) {
            Ok(Some(incoming)) => incoming,
            Err(Errno::AGAIN | Errno::INTR) => Incoming::Nothing,
            Ok(None) | Err(_) => {
                self.connection = None;
                Incoming::Nothing
            }
        }
    }

    /// Sends a message. An agent that does not read its answers loses the connection.
    pub fn send(&mut self, response: &Response) {
        let Some(connection) = &self.connection else { return };
        if send(connection, response).is_err() {
            self.connection = None;
        }
    }
}

fn receive(connection: &OwnedFd) -> Result<Option<Incoming>, Errno> {
    // One byte more than is allowed, so that what is too long can be told from what just fits.
    let mut bytes = vec![0; MAX_MESSAGE + 1];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    if received.bytes == 0 && files.is_empty() {
        return Ok(None);
    }
    let malformed = |text: &str| Ok(Some(Incoming::Malformed(text.into())));
    if received.flags.contains(ReturnFlags::TRUNC) || received.bytes > MAX_MESSAGE {
        return malformed("the message is too long");
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return malformed("too many files are attached, or the monitor can hold no more");
    }
    match serde_json::from_slice(&bytes[..received.bytes]) {
        Ok(request) => Ok(Some(Incoming::Request(request, Files::new(files)))),
        Err(error) => malformed(&format!("the message is not understood: {error}")),
    }
}

fn send(connection: &OwnedFd, response: &Response) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(response).map_err(|_| Errno::INVAL)?;
    let sent = rustix::net::sendmsg(
        connection.as_fd(),
        &[IoSlice::new(&bytes)],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}
