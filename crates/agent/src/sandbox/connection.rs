//! The agent's end of the supervisor protocol ([`model::sandbox`]).

use std::io;
use std::path::Path;

use model::sandbox::{FromSupervisor, MAX_FRAME, ToSupervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Why a supervisor cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the supervisor's socket cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the connection to the supervisor broke")]
    Broken(#[source] io::Error),
    #[error("the supervisor closed the connection")]
    Closed,
    #[error("the supervisor sent a frame of {0} bytes, more than a frame may have")]
    TooLarge(usize),
    #[error("the supervisor sent a message that makes no sense")]
    Malformed(#[source] serde_json::Error),
}

/// A connection whose two directions are used by one owner.
#[derive(Debug)]
pub struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    /// Bytes received and not yet decoded; kept here so that dropping [`Connection::receive`]'s
    /// future loses nothing.
    received: Vec<u8>,
}

impl Connection {
    /// # Errors
    /// Nobody listens on the socket.
    pub async fn open(socket: &Path) -> Result<Self, ConnectionError> {
        let stream = UnixStream::connect(socket).await.map_err(ConnectionError::Connect)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader, writer, received: Vec::new() })
    }

    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, message: &ToSupervisor) -> Result<(), ConnectionError> {
        let body = serde_json::to_vec(message).map_err(ConnectionError::Malformed)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME);
        let length = length.ok_or(ConnectionError::TooLarge(body.len()))?;
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        self.writer.write_all(&frame).await.map_err(ConnectionError::Broken)
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke or the supervisor does not keep to the protocol.
    pub async fn receive(&mut self) -> Result<FromSupervisor, ConnectionError> {
        loop {
            if let Some((length, rest)) = self.received.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > MAX_FRAME {
                    return Err(ConnectionError::TooLarge(length));
                }
                if let Some(body) = rest.get(..length) {
                    let message = serde_json::from_slice(body).map_err(ConnectionError::Malformed);
                    self.received.drain(..4 + length);
                    return message;
                }
            }
            let read = self.reader.read_buf(&mut self.received).await.map_err(ConnectionError::Broken)?;
            if read == 0 {
                return Err(ConnectionError::Closed);
            }
        }
    }
}
