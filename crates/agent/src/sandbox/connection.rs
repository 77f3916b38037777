//! The agent's end of the supervisor protocol ([`model::sandbox`]).

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use model::sandbox::{FromSupervisor, MAX_FRAME, ToSupervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::socket_path;

/// Where a supervisor listens, in its directory.
pub(super) const SOCKET: &str = "supervisor.sock";

/// How long a supervisor may take to read what it is told: a microVM's is not to be waited for, should
/// it be the tenant's.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a supervisor cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the supervisor's socket cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the connection to the supervisor broke")]
    Broken(#[source] io::Error),
    #[error("the supervisor did not take a message within {} seconds", SEND_TIMEOUT.as_secs())]
    Stalled,
    #[error("the supervisor closed the connection")]
    Closed,
    #[error("the supervisor sent a frame of {0} bytes, more than a frame may have")]
    TooLarge(usize),
    #[error("the supervisor began with something else than its state")]
    OutOfTurn,
    #[error("the supervisor sent a message that makes no sense")]
    Malformed(#[source] serde_json::Error),
}

/// Makes the socket [`SOCKET`] in `dir` for whoever shall listen on it.
///
/// # Errors
/// It cannot be made.
pub(super) fn listen(dir: &Path) -> io::Result<UnixListener> {
    let opened = File::open(dir)?;
    let listener = UnixListener::bind(socket_path(&opened, SOCKET))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
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
    /// Connects to the socket [`SOCKET`] in `dir`, however long the directory's path is.
    ///
    /// # Errors
    /// Nobody listens on the socket.
    pub async fn open(dir: &Path) -> Result<Self, ConnectionError> {
        let opened = File::open(dir).map_err(ConnectionError::Connect)?;
        let stream =
            UnixStream::connect(socket_path(&opened, SOCKET)).await.map_err(ConnectionError::Connect)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader, writer, received: Vec::new() })
    }

    /// # Errors
    /// The connection broke, or nobody reads at its other end. It is of no use then.
    pub async fn send(&mut self, message: &ToSupervisor) -> Result<(), ConnectionError> {
        let body = serde_json::to_vec(message).map_err(ConnectionError::Malformed)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME);
        let length = length.ok_or(ConnectionError::TooLarge(body.len()))?;
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        let writing = tokio::time::timeout(SEND_TIMEOUT, self.writer.write_all(&frame)).await;
        writing.map_err(|_| ConnectionError::Stalled)?.map_err(ConnectionError::Broken)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen(dir.path()).unwrap();
        let mut connection = Connection::open(dir.path()).await.unwrap();
        let (peer, _) = listener.accept().unwrap();
        let message = ToSupervisor::AckLogs { container: "x".repeat(1 << 20), upto: 0 };
        let mut sent = Ok(());
        for _ in 0..16 {
            sent = connection.send(&message).await;
            if sent.is_err() {
                break;
            }
        }
        assert!(matches!(sent, Err(ConnectionError::Stalled)), "{sent:?}");
        drop(peer);
    }
}
