//! The agent's end of the monitor protocol ([`model::microvm`]).

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use model::microvm::{Attached, Ended, MAX_FILES, MAX_MESSAGE, Request, Response};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket_path;

/// Where a monitor listens, in its directory.
const SOCKET: &str = "control.sock";
/// Where a monitor writes how its machine ended, in its directory.
const ENDED: &str = "ended.json";
/// How long a monitor may take to answer: to boot or restore a machine it reads some files.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("the microVM monitor cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the connection to the microVM monitor broke")]
    Broken(#[source] io::Error),
    #[error("the microVM monitor closed the connection")]
    Closed,
    #[error("a message to the microVM monitor would have {files} files in {bytes} bytes, more than one may")]
    TooLarge { files: usize, bytes: usize },
    #[error("the microVM monitor sent a message that makes no sense")]
    Malformed(#[source] serde_json::Error),
    #[error("the microVM monitor did not answer within {} seconds", .0.as_secs())]
    Silent(Duration),
    #[error("the microVM could not be run: {0}")]
    Failed(String),
    #[error("the microVM ended: {}", describe_end(.0))]
    Ended(Ended),
    #[error("the microVM monitor answered something else than it was asked")]
    Unexpected,
}

/// How a machine ended, in words for `stoppedReason`.
#[must_use]
pub fn describe_end(ended: &Ended) -> String {
    match ended {
        Ended::PoweredOff => "its kernel shut down".to_owned(),
        Ended::Reset => "its kernel crashed".to_owned(),
        Ended::Stopped => "it was stopped".to_owned(),
        Ended::DeviceGone { device } => format!("its {device} is gone from the host"),
        Ended::Failed { message } => format!("its monitor failed: {message}"),
    }
}

/// No longer end is read, in bytes: a guest that got into its monitor may have written it.
const MAX_ENDED: u64 = 16 << 10;

/// How the machine in `dir` ended, if it has.
#[must_use]
pub fn ended(dir: &Path) -> Option<Ended> {
    let mut bytes = Vec::new();
    std::fs::File::open(dir.join(ENDED)).ok()?.take(MAX_ENDED).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Open files to go along with a request.
#[derive(Debug, Default)]
pub struct Files<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Files<'a> {
    /// Adds a file; what stands for it in the request.
    ///
    /// # Errors
    /// There are [`MAX_FILES`] already.
    pub fn attach(&mut self, file: &'a impl AsFd) -> Result<Attached, MonitorError> {
        let place = u8::try_from(self.0.len()).ok().filter(|place| usize::from(*place) < MAX_FILES);
        let place = place.ok_or(MonitorError::TooLarge { files: self.0.len() + 1, bytes: 0 })?;
        self.0.push(file.as_fd());
        Ok(Attached(place))
    }
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<OwnedFd>,
}

impl Monitor {
    /// Connects to the monitor in `dir`, however long that path is.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(dir: &Path) -> Result<Self, MonitorError> {
        let connect = || -> io::Result<OwnedFd> {
            let opened = std::fs::File::open(dir)?;
            let address = SocketAddrUnix::new(socket_path(&opened, SOCKET))?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::connect(&socket, &address)?;
            Ok(socket)
        };
        let socket = connect().map_err(MonitorError::Connect)?;
        Ok(Self { socket: registered(socket).map_err(MonitorError::Connect)? })
    }

    /// Asks for something and waits until it is done.
    ///
    /// # Errors
    /// It was refused, failed, or the machine or its monitor is gone.
    pub async fn ask(&mut self, request: &Request, files: &Files<'_>) -> Result<Response, MonitorError> {
        self.ask_within(ANSWER_TIMEOUT, request, files).await
    }

    /// As [`Monitor::ask`], of a monitor that may take `limit` to answer.
    ///
    /// # Errors
    /// As [`Monitor::ask`].
    pub async fn ask_within(
        &mut self,
        limit: Duration,
        request: &Request,
        files: &Files<'_>,
    ) -> Result<Response, MonitorError> {
        self.send(request, files).await?;
        let answer = tokio::time::timeout(limit, self.receive()).await;
        match answer.map_err(|_| MonitorError::Silent(limit))?? {
            Response::Failed { message } => Err(MonitorError::Failed(message)),
            Response::Ended(ended) => Err(MonitorError::Ended(ended)),
            answer => Ok(answer),
        }
    }

    async fn send(&mut self, request: &Request, files: &Files<'_>) -> Result<(), MonitorError> {
        let body = serde_json::to_vec(request).map_err(MonitorError::Malformed)?;
        if body.len() > MAX_MESSAGE || files.0.len() > MAX_FILES {
            return Err(MonitorError::TooLarge { files: files.0.len(), bytes: body.len() });
        }
        let sending = self.socket.async_io(Interest::WRITABLE, |socket| {
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(files.0.len()))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !files.0.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files.0)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            rustix::net::sendmsg(socket, &[IoSlice::new(&body)], &mut control, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)
        });
        sending.await.map(drop).map_err(MonitorError::Broken)
    }

    async fn receive(&mut self) -> Result<Response, MonitorError> {
        let mut body = vec![0; MAX_MESSAGE];
        let receiving = self.socket.async_io(Interest::READABLE, |socket| {
            // A monitor has no files to give: what it attaches is closed by the kernel.
            let mut control = RecvAncillaryBuffer::new(&mut []);
            rustix::net::recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut body)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .map_err(io::Error::from)
        });
        let length = receiving.await.map_err(MonitorError::Broken)?.bytes;
        if length == 0 {
            return Err(MonitorError::Closed);
        }
        serde_json::from_slice(&body[..length]).map_err(MonitorError::Malformed)
    }
}

#[allow(unsafe_code)]
fn registered(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_reach_the_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(dir.path().join(SOCKET)).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        let path = dir.path().join("a file");
        std::fs::write(&path, "content").unwrap();

        let mut monitor = Monitor::open(dir.path()).unwrap();
        let peer = std::thread::spawn(move || {
            let stream = rustix::net::accept(&listener).unwrap();
            let mut body = vec![0; MAX_MESSAGE];
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = rustix::net::recvmsg(
                &stream,
                &mut [IoSliceMut::new(&mut body)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .unwrap();
            let request: Request = serde_json::from_slice(&body[..got.bytes]).unwrap();
            let files: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    rustix::net::RecvAncillaryMessage::ScmRights(files) => Some(files),
                    _ => None,
                })
                .flatten()
                .collect();
            let answer = Response::Failed { message: "no machine".into() };
            rustix::net::send(&stream, &serde_json::to_vec(&answer).unwrap(), SendFlags::empty()).unwrap();
            (
                request,
                files.into_iter().map(std::fs::File::from).map(std::io::read_to_string).collect::<Vec<_>>(),
            )
        });
        let file = std::fs::File::open(&path).unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        let mut files = Files::default();
        let (state, memory) = (files.attach(&file).unwrap(), files.attach(&other).unwrap());
        let answer = monitor.ask(&Request::Snapshot { state, memory, pages: None }, &files).await;
        assert!(matches!(answer, Err(MonitorError::Failed(message)) if message == "no machine"));
        let (request, texts) = peer.join().unwrap();
        assert_eq!(request, Request::Snapshot { state: Attached(0), memory: Attached(1), pages: None });
        let texts: Vec<String> = texts.into_iter().map(Result::unwrap).collect();
        assert_eq!(texts, ["content", ""]);
    }
}
