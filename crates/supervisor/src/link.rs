//! The agent's connection: frames in, frames out, one connection at a time.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, bail};
use model::sandbox::{FromSupervisor, MAX_FRAME, ToSupervisor};
use nix::libc::{VMADDR_CID_ANY, VMADDR_CID_HOST};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, getsockopt, listen, socket,
};
use rustix::net::{SocketFlags, accept_with};

/// Log batches wait while this many bytes are not sent: a slow agent must not grow our memory.
const OUTPUT_LIMIT: usize = 256 * 1024;
const READ_SIZE: usize = 64 * 1024;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Where the agent connects to.
pub struct Listener {
    socket: OwnedFd,
    /// The port of a microVM's socket; a container sandbox's is a Unix socket.
    vsock_port: Option<u32>,
}

impl Listener {
    /// Takes connections of processes of our own user.
    pub fn unix(listener: UnixListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { socket: listener.into(), vsock_port: None })
    }

    /// Takes connections of the machine's host to a port of this machine (vsock(7)).
    ///
    /// # Errors
    /// The kernel has no vsock, or the port is taken.
    pub fn vsock(port: u32) -> Result<Self> {
        let listener = Self { socket: vsock_socket()?, vsock_port: Some(port) };
        listener.begin_vsock(port)?;
        Ok(listener)
    }

    fn begin_vsock(&self, port: u32) -> Result<()> {
        bind(self.socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))
            .and_then(|()| listen(&self.socket, Backlog::new(BACKLOG)?))
            .with_context(|| format!("listen on vsock port {port}"))
    }

    /// Listens anew, where that is possible, with another socket, which nobody watches yet. Whether
    /// it was possible.
    ///
    /// # Errors
    /// The port cannot be had again.
    pub fn renew(&mut self) -> Result<bool> {
        let Some(port) = self.vsock_port else { return Ok(false) };
        // The old one is closed by this, which frees the port.
        self.socket = vsock_socket()?;
        self.begin_vsock(port).map(|()| true)
    }

    /// Takes a connection; `None` when there is none (any more).
    ///
    /// # Errors
    /// The listener does not work.
    pub fn accept(&self) -> rustix::io::Result<Option<Connection>> {
        use rustix::io::Errno;
        let stream = match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(stream) => stream,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        match self.check_peer(&stream) {
            Ok(()) => Ok(Some(Connection::new(stream))),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "connection refused");
                Ok(None)
            }
        }
    }

    fn check_peer(&self, stream: &OwnedFd) -> Result<()> {
        if self.vsock_port.is_some() {
            // A process of the machine itself is as good as any of its containers.
            let peer: VsockAddr = getpeername(stream.as_raw_fd())?;
            if peer.cid() != VMADDR_CID_HOST {
                bail!("the peer is the machine {}", peer.cid());
            }
        } else {
            let peer = getsockopt(stream, PeerCredentials)?;
            if peer.uid() != nix::unistd::geteuid().as_raw() {
                bail!("the peer is of user {}", peer.uid());
            }
        }
        Ok(())
    }
}

fn vsock_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Vsock, SockType::Stream, flags, None).context("open a vsock socket")
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A connection of the agent.
pub struct Connection {
    pub stream: File,
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
}

impl Connection {
    /// Of a stream socket that does not block.
    fn new(stream: OwnedFd) -> Self {
        Self { stream: stream.into(), input: Vec::new(), output: Vec::new(), sent: 0 }
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// The connection ended, or a frame is too long or not understood.
    pub fn receive(&mut self) -> Result<Vec<ToSupervisor>> {
        let mut chunk = vec![0u8; READ_SIZE];
        let mut messages = Vec::new();
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    if messages.is_empty() {
                        bail!("the agent closed the connection");
                    }
                    return Ok(messages);
                }
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(messages),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            let mut taken = 0;
            while let Some(frame) = next_frame(&self.input[taken..])? {
                taken += 4 + frame.len();
                messages.push(serde_json::from_slice(frame)?);
            }
            self.input.drain(..taken);
            if self.input.is_empty() {
                self.input.shrink_to(READ_SIZE);
            }
        }
    }

    /// Whether another log batch may be queued.
    pub fn has_room(&self) -> bool {
        self.output.len() - self.sent < OUTPUT_LIMIT
    }

    pub fn wants_to_write(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Queues a message.
    ///
    /// # Errors
    /// The message does not fit a frame.
    pub fn queue(&mut self, message: &FromSupervisor) -> Result<()> {
        let start = self.output.len();
        self.output.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.output, message)?;
        let length = self.output.len() - start - 4;
        if length > MAX_FRAME {
            self.output.truncate(start);
            bail!("a message of {length} bytes does not fit a frame");
        }
        let length = u32::try_from(length)?.to_be_bytes();
        self.output[start..start + 4].copy_from_slice(&length);
        Ok(())
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The connection ended.
    pub fn flush(&mut self) -> Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.output.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.output.shrink_to(READ_SIZE);
        self.sent = 0;
        Ok(())
    }
}

/// The first frame's content, if it is whole.
fn next_frame(input: &[u8]) -> Result<Option<&[u8]>> {
    let Some((header, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*header))?;
    if length > MAX_FRAME {
        bail!("a frame of {length} bytes is too long");
    }
    Ok(rest.get(..length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Connection) {
        let (agent, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        (agent, Connection::new(stream.into()))
    }

    fn frame(text: &str) -> Vec<u8> {
        let mut frame = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    #[test]
    fn frames_in_pieces_and_malformed() {
        let (mut agent, mut connection) = pair();
        let release = frame(r#"{"type":"release"}"#);
        agent.write_all(&release[..7]).unwrap();
        assert!(connection.receive().unwrap().is_empty());
        agent.write_all(&release[7..]).unwrap();
        agent.write_all(&frame(r#"{"type":"ack_logs","container":"a","upto":3}"#)).unwrap();
        let messages = connection.receive().unwrap();
        assert!(matches!(messages[..], [ToSupervisor::Release, ToSupervisor::AckLogs { upto: 3, .. }]));
        agent.write_all(&frame("{}")).unwrap();
        assert!(connection.receive().is_err());
    }

    #[test]
    fn too_long_frames_are_refused_before_they_are_read() {
        let (mut agent, mut connection) = pair();
        agent.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(connection.receive().is_err());
    }
}
