//! A guest's driver, and peers on the host.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};

use crate::virtio::testing::{BUFFERS, Bench};
use crate::virtio::vsock::connection::BUFFER;
use crate::virtio::vsock::*;

pub(super) const PORT: u32 = 1024;
/// The guest's receive buffers: like Linux 6.1, 4 KiB each behind a header of its own.
pub(super) const ROOM: u32 = 4096;
/// Where those for transmission lie.
pub(super) const OUT: u64 = BUFFERS + (16 << 20);
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A socket address that is gone with the test.
pub(super) struct Host {
    pub(super) directory: tempfile::TempDir,
}

impl Host {
    pub(super) fn new() -> (Self, VsockPort) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        (Self { directory }, VsockPort { listener, port: PORT })
    }

    pub(super) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }
}

/// A guest's driver that keeps to the rules, unless a test makes it do otherwise.
pub(super) struct Guest {
    pub(super) bench: Bench<Vsock>,
    /// Whether used receive buffers are given back.
    pub(super) refills: bool,
    pub(super) packets: VecDeque<(Header, Vec<u8>)>,
    /// Receive buffers by head.
    pub(super) buffers: HashMap<u16, u64>,
    pub(super) kept: Vec<u64>,
}

impl Guest {
    pub(super) fn new(ports: Vec<VsockPort>) -> Self {
        Self::with(Vsock::new(ports).unwrap(), FEATURES)
    }

    pub(super) fn with(device: Vsock, features: u64) -> Self {
        let bench = Bench::new(device, features);
        let mut guest = Self {
            bench,
            refills: true,
            packets: VecDeque::new(),
            buffers: HashMap::new(),
            kept: (0..128).map(|index| BUFFERS + index * 8192).collect(),
        };
        for index in 0..8 {
            guest.bench.driver.rings[EVENT].offer(&[(BUFFERS - 64 + 8 * index, 4, true)]).unwrap();
        }
        guest.refill();
        guest.bench.activate().unwrap();
        guest
    }

    pub(super) fn refill(&mut self) {
        while let Some(address) = self.kept.pop() {
            let chain = [(address, Header::SIZE as u32, true), (address + 64, ROOM, true)];
            let head = self.bench.offer(RECEIVE, &chain).unwrap().unwrap();
            self.buffers.insert(head, address);
        }
    }

    /// Takes what has arrived.
    pub(super) fn take(&mut self) {
        while let Some((head, len)) = self.bench.driver.rings[RECEIVE].completed() {
            let address = self.buffers.remove(&head).unwrap();
            let header =
                Header::from_bytes(&self.bench.driver.read(address, Header::SIZE).try_into().unwrap());
            assert_eq!(len as usize, Header::SIZE + header.len as usize);
            assert_eq!(header.dst_cid, GUEST_CID);
            self.packets.push_back((header, self.bench.driver.read(address + 64, header.len as usize)));
            self.kept.push(address);
        }
        if self.refills {
            self.refill();
        }
        while self.bench.driver.rings[TRANSMIT].completed().is_some() {}
    }

    /// The next packet to the guest.
    pub(super) fn next(&mut self) -> (Header, Vec<u8>) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return packet;
            }
            assert!(std::time::Instant::now() < deadline, "no packet came");
            self.bench.serve_within(std::time::Duration::from_millis(5)).unwrap();
            self.take();
        }
    }

    pub(super) fn expect(&mut self, operation: Operation) -> (Header, Vec<u8>) {
        let packet = self.next();
        assert_eq!(Operation::from_number(packet.0.operation), Some(operation), "{:?}", packet.0);
        packet
    }

    pub(super) fn expect_nothing(&mut self) {
        self.bench.settle();
        self.take();
        self.bench.settle();
        self.take();
        assert_eq!(self.packets, []);
    }

    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.try_send(header, payload).unwrap();
    }

    /// One descriptor for header and payload, like Linux since 6.2.
    pub(super) fn try_send(&mut self, header: Header, payload: &[u8]) -> Result<(), DeviceError> {
        let address = OUT + u64::from(self.bench.driver.rings[TRANSMIT].available_index() % 64) * 0x2_0000;
        self.bench.driver.write(address, &header.to_bytes());
        self.bench.driver.write(address + Header::SIZE as u64, payload);
        let chain = [(address, (Header::SIZE + payload.len()) as u32, false)];
        self.bench.offer(TRANSMIT, &chain)?.unwrap();
        self.take();
        Ok(())
    }

    pub(super) fn listen(&mut self) -> Stream {
        let (request, _) = self.expect(Operation::Request);
        assert_eq!(request.src_cid, HOST_CID);
        assert_eq!((request.dst_port, request.kind, request.buf_alloc), (PORT, TYPE_STREAM, BUFFER));
        let mut stream = Stream::new(request.src_port);
        stream.say(self, Operation::Response, 0, &[]);
        stream
    }
}

/// The guest's end of a connection.
pub(super) struct Stream {
    pub(super) port: u32,
    pub(super) buffer: u32,
    pub(super) received: u32,
    pub(super) sent: u32,
    pub(super) host_forwarded: u32,
}

impl Stream {
    pub(super) fn new(port: u32) -> Self {
        Self { port, buffer: 256 * 1024, received: 0, sent: 0, host_forwarded: 0 }
    }

    pub(super) fn header(&self, operation: Operation, flags: u32, len: usize) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: self.port,
            len: len as u32,
            kind: TYPE_STREAM,
            operation: operation as u16,
            flags,
            buf_alloc: self.buffer,
            fwd_cnt: self.received,
        }
    }

    pub(super) fn say(&mut self, guest: &mut Guest, operation: Operation, flags: u32, payload: &[u8]) {
        guest.send(self.header(operation, flags, payload.len()), payload);
        self.sent = self.sent.wrapping_add(payload.len() as u32);
    }

    pub(super) fn credit(&self) -> usize {
        (BUFFER - self.sent.wrapping_sub(self.host_forwarded)) as usize
    }

    pub(super) fn heard(&mut self, header: &Header) {
        self.host_forwarded = header.fwd_cnt;
        self.received = self.received.wrapping_add(header.len);
    }
}

/// Bytes in which a shift or a repetition shows.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

pub(super) fn read_available(stream: &mut UnixStream, into: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 65536];
    match stream.read(&mut bytes) {
        Ok(0) => true,
        Ok(count) => {
            into.extend(&bytes[..count]);
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    }
}

/// The peer reads until the end.
pub(super) fn read_to_end(guest: &mut Guest, stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    guest.bench.until("the end of the stream", |_| read_available(stream, &mut all));
    all
}

pub(super) fn read_exactly(guest: &mut Guest, stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    guest.bench.until("bytes", |_| {
        assert!(!read_available(stream, &mut all), "the stream ended");
        all.len() >= len
    });
    all
}

pub(super) fn assert_hung_up(guest: &mut Guest, stream: &mut UnixStream) {
    let mut bytes = [0; 1];
    guest.bench.until("the stream to be closed", |_| match stream.read(&mut bytes) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    });
}

/// A connection, for tests of how it ends.
pub(super) fn connected() -> (Host, Guest, UnixStream, Stream) {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let peer = host.connect();
    let stream = guest.listen();
    (host, guest, peer, stream)
}
