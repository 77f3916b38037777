//! A client of the real `coracle-vmm`, which does what an agent does, and guests to run.
#![allow(dead_code, reason = "not every test program uses everything")]

pub mod own_guest;

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::microvm::{
    Attached, CONTROL_FD, Devices, ENDED_FD, Ended, KVM_FD, MAX_MESSAGE, MachineConfig, Request, Response,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

/// Longer than anything takes in the emulated host.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor's process and a connection to it.
pub struct Monitor {
    process: Child,
    connection: Option<OwnedFd>,
    ended: File,
    stderr: File,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

fn program() -> PathBuf {
    std::env::var_os("CORACLE_VMM").map_or_else(|| env!("CARGO_BIN_EXE_coracle-vmm").into(), PathBuf::from)
}

fn seqpacket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// A copy with a number that the child's descriptors do not get in the way of.
fn out_of_the_way(fd: BorrowedFd<'_>) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, 20).unwrap()
}

impl Monitor {
    /// Starts a monitor with the host's KVM and connects to it.
    pub fn start() -> Self {
        Self::start_with(&File::options().read(true).write(true).open("/dev/kvm").unwrap())
    }

    /// Starts a monitor for which this file is `/dev/kvm`.
    #[allow(unsafe_code)]
    pub fn start_with(kvm: &File) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let listener = seqpacket();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        let (ended, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let handed: Vec<(OwnedFd, i32)> =
            [(listener.as_fd(), CONTROL_FD), (ended.as_fd(), ENDED_FD), (kvm.as_fd(), KVM_FD)]
                .into_iter()
                .map(|(fd, number)| (out_of_the_way(fd), number))
                .collect();
        let mut command = Command::new(program());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().unwrap());
        // SAFETY: only calls dup2(2), which is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                for (fd, number) in &handed {
                    if libc::dup2(fd.as_raw_fd(), *number) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let process = command.spawn().unwrap();
        let mut monitor = Self { process, connection: None, ended, stderr, socket, _directory: directory };
        monitor.connect();
        monitor
    }

    /// Connects anew, as an agent does after a restart.
    pub fn connect(&mut self) {
        let connection = seqpacket();
        rustix::net::connect(&connection, &SocketAddrUnix::new(&self.socket).unwrap()).unwrap();
        self.connection = Some(connection);
    }

    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The request to write the machine down, and the file that goes along after two others.
    pub fn snapshot(&self) -> (Request, File) {
        let pages = File::open(format!("/proc/{}/pagemap", self.pid())).unwrap();
        let request = Request::Snapshot { state: Attached(0), memory: Attached(1), pages: Some(Attached(2)) };
        (request, pages)
    }

    /// Writes the paused machine down.
    pub fn write_down(&mut self, state: &File, memory: &File) {
        let (request, pages) = self.snapshot();
        self.must(&request, &[state, memory, &pages]);
    }

    /// Sends any bytes with any files.
    pub fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
        }
        let connection = self.connection.as_ref().unwrap();
        rustix::net::sendmsg(connection, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
            .unwrap();
    }

    /// The next message from the monitor; `None`: it has closed the connection.
    pub fn receive(&mut self) -> Option<Response> {
        let connection = self.connection.as_ref().unwrap();
        let mut ready = [PollFd::new(connection, PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut ready, Some(&patience)).unwrap(), 1, "no answer: {}", self.errors());
        let mut bytes = vec![0; MAX_MESSAGE];
        let received = rustix::net::recvmsg(
            connection,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut RecvAncillaryBuffer::default(),
            RecvFlags::empty(),
        );
        match received {
            Ok(received) if received.bytes > 0 => {
                Some(serde_json::from_slice(&bytes[..received.bytes]).unwrap())
            }
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks for something, and gets the answer.
    pub fn ask(&mut self, request: &Request, files: &[&dyn AsFd]) -> Response {
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.send(&serde_json::to_vec(request).unwrap(), &files);
        self.receive().unwrap_or_else(|| panic!("the monitor is gone: {}", self.errors()))
    }

    /// Asks for something that succeeds.
    pub fn must(&mut self, request: &Request, files: &[&dyn AsFd]) {
        let response = self.ask(request, files);
        assert_eq!(response, Response::Done, "{}", self.errors());
    }

    /// Asks for something that is refused, and returns why.
    pub fn must_refuse(&mut self, request: &Request, files: &[&dyn AsFd]) -> String {
        match self.ask(request, files) {
            Response::Failed { message } => message,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Waits until the machine has ended and the monitor with it; both ways of telling must agree.
    pub fn wait_for_end(&mut self) -> Ended {
        let told = if self.connection.is_some() {
            match self.receive() {
                Some(Response::Ended(ended)) => Some(ended),
                other => panic!("not an end: {other:?}; {}", self.errors()),
            }
        } else {
            None
        };
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the monitor does not exit");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {}", self.errors());
        let mut text = String::new();
        self.ended.rewind().unwrap();
        self.ended.read_to_string(&mut text).unwrap();
        let written: Ended = serde_json::from_str(&text).unwrap();
        assert_eq!(told.as_ref().unwrap_or(&written), &written);
        written
    }

    /// What the monitor has said on its standard error.
    pub fn errors(&self) -> String {
        let mut text = String::new();
        let mut file = &self.stderr;
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file to which a guest's console is written.
pub struct Console(File);

impl Console {
    pub fn new() -> Self {
        Self(tempfile::tempfile().unwrap())
    }

    pub fn text(&self) -> String {
        let mut bytes = vec![0; self.0.metadata().unwrap().len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest has written this.
    pub fn wait_for(&self, what: &str) {
        self.wait_until(|text| text.contains(what));
    }

    /// Waits until what the guest has written is like this.
    pub fn wait_until(&self, condition: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.text()) {
            assert!(Instant::now() < deadline, "still:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file of the test guest (`emulated-host/README.md`).
pub fn guest(name: &str) -> File {
    let directory =
        std::env::var("CORACLE_TEST_GUEST").expect("CORACLE_TEST_GUEST is set on the emulated host");
    File::open(Path::new(&directory).join(name)).unwrap()
}

/// The probe guest, which runs a shell command and powers off: kernel, initramfs and console are
/// the first three attached files.
pub fn probe(command: &str) -> MachineConfig {
    MachineConfig {
        vcpus: 1,
        memory_mib: 256,
        kernel: Attached(0),
        initramfs: Some(Attached(1)),
        command_line: format!("console=ttyS0 quiet reboot=k panic=-1 RUN=\"{command}\""),
        devices: Devices::default(),
        console: Some(Attached(2)),
    }
}

/// Boots the probe guest from the kernel of this name.
pub fn boot(monitor: &mut Monitor, config: MachineConfig, kernel: &str) -> Console {
    let console = Console::new();
    let files: [&dyn AsFd; 3] = [&guest(kernel), &guest("probe.cpio"), &console];
    monitor.must(&Request::Boot(Box::new(config)), &files);
    console
}

/// Runs a part of a test in a network namespace that is gone with it.
pub fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(test).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A tap device as the agent makes it, with the host's address, in a network namespace of this
/// thread's.
#[allow(unsafe_code)]
pub fn tap() -> OwnedFd {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    // SAFETY: concerns this thread only, which has nothing of the network open.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "root");
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: zeros are a valid `ifreq`; the kernel reads and writes one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as _;
        assert_eq!(libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request), 0);
    }
    for command in ["link set tap0 up", "address add 10.0.0.1/24 dev tap0"] {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
    }
    file.into()
}
