use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use proptest::prelude::*;

use super::connection::BUFFER;
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::testing::{BUFFERS, Bench, filtered};

const PORT: u32 = 1024;
/// The guest's receive buffers: like Linux 6.1, 4 KiB each behind a header of its own.
const ROOM: u32 = 4096;
/// Where those for transmission lie.
const OUT: u64 = BUFFERS + (16 << 20);
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A socket address that is gone with the test.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> (Self, VsockPort) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        (Self { directory }, VsockPort { listener, port: PORT })
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }
}

/// A guest's driver that keeps to the rules, unless a test makes it do otherwise.
struct Guest {
    bench: Bench<Vsock>,
    /// Whether used receive buffers are given back.
    refills: bool,
    packets: VecDeque<(Header, Vec<u8>)>,
    /// Receive buffers by head.
    buffers: HashMap<u16, u64>,
    kept: Vec<u64>,
}

impl Guest {
    fn new(ports: Vec<VsockPort>) -> Self {
        Self::with(Vsock::new(ports).unwrap(), FEATURES)
    }

    fn with(device: Vsock, features: u64) -> Self {
        let bench = Bench::new(device, features);
        let mut guest = Self {
            bench,
            refills: true,
            packets: VecDeque::new(),
            buffers: HashMap::new(),
            kept: (0..128).map(|index| BUFFERS + index * 8192).collect(),
        };
        for index in 0..8 {
            guest.bench.rings[EVENT].offer(&[(BUFFERS - 64 + 8 * index, 4, true)]).unwrap();
        }
        guest.refill();
        guest.bench.activate().unwrap();
        guest
    }

    fn refill(&mut self) {
        while let Some(address) = self.kept.pop() {
            let chain = [(address, Header::SIZE as u32, true), (address + 64, ROOM, true)];
            let head = self.bench.offer(RECEIVE, &chain).unwrap().unwrap();
            self.buffers.insert(head, address);
        }
    }

    /// Takes what has arrived.
    fn take(&mut self) {
        while let Some((head, len)) = self.bench.rings[RECEIVE].completed() {
            let address = self.buffers.remove(&head).unwrap();
            let header = Header::from_bytes(&self.bench.read(address, Header::SIZE).try_into().unwrap());
            assert_eq!(len as usize, Header::SIZE + header.len as usize);
            assert_eq!(header.dst_cid, GUEST_CID);
            self.packets.push_back((header, self.bench.read(address + 64, header.len as usize)));
            self.kept.push(address);
        }
        if self.refills {
            self.refill();
        }
        while self.bench.rings[TRANSMIT].completed().is_some() {}
    }

    /// The next packet to the guest.
    fn next(&mut self) -> (Header, Vec<u8>) {
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

    fn expect(&mut self, operation: Operation) -> (Header, Vec<u8>) {
        let packet = self.next();
        assert_eq!(Operation::from_number(packet.0.operation), Some(operation), "{:?}", packet.0);
        packet
    }

    fn expect_nothing(&mut self) {
        self.bench.settle();
        self.take();
        self.bench.settle();
        self.take();
        assert_eq!(self.packets, []);
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.try_send(header, payload).unwrap();
    }

    /// One descriptor for header and payload, like Linux since 6.2.
    fn try_send(&mut self, header: Header, payload: &[u8]) -> Result<(), DeviceError> {
        let address = OUT + u64::from(self.bench.rings[TRANSMIT].available_index() % 64) * 0x2_0000;
        self.bench.write(address, &header.to_bytes());
        self.bench.write(address + Header::SIZE as u64, payload);
        let chain = [(address, (Header::SIZE + payload.len()) as u32, false)];
        self.bench.offer(TRANSMIT, &chain)?.unwrap();
        self.take();
        Ok(())
    }

    fn listen(&mut self) -> Stream {
        let (request, _) = self.expect(Operation::Request);
        assert_eq!(request.src_cid, HOST_CID);
        assert_eq!((request.dst_port, request.kind, request.buf_alloc), (PORT, TYPE_STREAM, BUFFER));
        let mut stream = Stream::new(request.src_port);
        stream.say(self, Operation::Response, 0, &[]);
        stream
    }
}

/// The guest's end of a connection.
struct Stream {
    port: u32,
    buffer: u32,
    received: u32,
    sent: u32,
    host_forwarded: u32,
}

impl Stream {
    fn new(port: u32) -> Self {
        Self { port, buffer: 256 * 1024, received: 0, sent: 0, host_forwarded: 0 }
    }

    fn header(&self, operation: Operation, flags: u32, len: usize) -> Header {
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

    fn say(&mut self, guest: &mut Guest, operation: Operation, flags: u32, payload: &[u8]) {
        guest.send(self.header(operation, flags, payload.len()), payload);
        self.sent = self.sent.wrapping_add(payload.len() as u32);
    }

    fn credit(&self) -> usize {
        (BUFFER - self.sent.wrapping_sub(self.host_forwarded)) as usize
    }

    fn heard(&mut self, header: &Header) {
        self.host_forwarded = header.fwd_cnt;
        self.received = self.received.wrapping_add(header.len);
    }
}

/// Bytes in which a shift or a repetition shows.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
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

fn read_available(stream: &mut UnixStream, into: &mut Vec<u8>) -> bool {
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
fn read_to_end(guest: &mut Guest, stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    guest.bench.until("the end of the stream", |_| read_available(stream, &mut all));
    all
}

fn read_exactly(guest: &mut Guest, stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    guest.bench.until("bytes", |_| {
        assert!(!read_available(stream, &mut all), "the stream ended");
        all.len() >= len
    });
    all
}

fn assert_hung_up(guest: &mut Guest, stream: &mut UnixStream) {
    let mut bytes = [0; 1];
    guest.bench.until("the stream to be closed", |_| match stream.read(&mut bytes) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    });
}

#[test]
fn speaks_both_ways_and_ends() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    peer.write_all(b"question").unwrap();
    let mut stream = guest.listen();
    let (header, payload) = guest.expect(Operation::Data);
    assert_eq!(payload, b"question");
    stream.heard(&header);
    stream.say(&mut guest, Operation::Data, 0, b"answer");
    assert_eq!(read_exactly(&mut guest, &mut peer, 6), b"answer");

    // The guest closes: everything was delivered, so it gets the reset that it waits for.
    stream.say(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH, &[]);
    let (reset, _) = guest.expect(Operation::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (stream.port, PORT));
    assert_eq!(read_to_end(&mut guest, &mut peer), b"");
    assert!(guest.bench.device.connections.is_empty());
    guest.expect_nothing();
}

#[test]
fn makes_only_the_system_calls_of_a_device_thread() {
    let (host, port) = Host::new();
    filtered(
        "virtio::vsock::tests::makes_only_the_system_calls_of_a_device_thread",
        move || Guest::new(vec![port]),
        |mut guest| {
            let mut stream = guest.listen();
            assert_eq!(guest.expect(Operation::Data).1, b"question");
            // More than the stream takes at once.
            let mut left = 1 << 20;
            while left > 0 {
                while let Some((header, _)) = guest.packets.pop_front() {
                    stream.heard(&header);
                }
                let len = stream.credit().min(left).min(30_000);
                if len > 0 {
                    stream.say(&mut guest, Operation::Data, 0, &vec![1; len]);
                    left -= len;
                }
                guest.bench.serve_within(std::time::Duration::from_millis(5)).unwrap();
                guest.take();
            }
            stream.say(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH, &[]);
            while guest.next().0.operation != Operation::Reset as u16 {}
            guest.listen();
            guest.bench.device.reset();
        },
        || {
            let mut peer = host.connect();
            peer.set_nonblocking(false).unwrap();
            peer.write_all(b"question").unwrap();
            let mut answer = Vec::new();
            peer.read_to_end(&mut answer).unwrap();
            assert_eq!(answer.len(), 1 << 20);
            let mut peer = host.connect();
            peer.set_nonblocking(false).unwrap();
            let _ = peer.read(&mut [0]);
        },
    );
}

#[test]
fn interrupts_when_there_is_something() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    guest.bench.interrupts();
    let _peer = host.connect();
    guest.listen();
    assert!(guest.bench.interrupts() > 0);
    assert_eq!(guest.bench.vrings.interrupt.status(), 1);
}

#[test]
fn serves_a_driver_without_event_idx() {
    let (host, port) = Host::new();
    let mut guest = Guest::with(Vsock::new(vec![port]).unwrap(), 1 << VIRTIO_F_VERSION_1);
    let mut peer = host.connect();
    let mut stream = guest.listen();
    stream.say(&mut guest, Operation::Data, 0, b"x");
    assert_eq!(read_exactly(&mut guest, &mut peer, 1), b"x");
}

#[test]
fn half_closes() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    let mut stream = guest.listen();

    // The peer sends no more, and still hears the answer.
    peer.write_all(b"all").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Operation::Data).1, b"all");
    assert_eq!(guest.expect(Operation::Shutdown).0.flags, SHUTDOWN_SEND);
    stream.say(&mut guest, Operation::Data, 0, b"late answer");
    stream.say(&mut guest, Operation::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(read_to_end(&mut guest, &mut peer), b"late answer");
    drop(peer);
    assert_eq!(guest.expect(Operation::Shutdown).0.flags, SHUTDOWN_BOTH);
    stream.say(&mut guest, Operation::Reset, 0, &[]);
    assert!(guest.bench.device.connections.is_empty());

    // The guest sends no more, and still hears the peer.
    let mut peer = host.connect();
    let mut stream = guest.listen();
    stream.say(&mut guest, Operation::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(read_to_end(&mut guest, &mut peer), b"");
    peer.write_all(b"still here").unwrap();
    assert_eq!(guest.expect(Operation::Data).1, b"still here");

    // The guest reads no more.
    stream.say(&mut guest, Operation::Shutdown, SHUTDOWN_RECEIVE, &[]);
    guest.expect(Operation::Reset);
    assert!(peer.write_all(b"too late").is_err());
    guest.expect_nothing();
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    let mut stream = guest.listen();
    let mut sent = Vec::new();
    // Fills the stream and the device's buffer, which the peer does not read.
    loop {
        while let Some((header, _)) = guest.packets.pop_front() {
            stream.heard(&header);
        }
        let len = stream.credit().min(4096);
        if len == 0 {
            guest.bench.settle();
            guest.take();
            if guest.packets.is_empty() {
                break;
            }
            continue;
        }
        let bytes = pattern(len, sent.len() as u64);
        stream.say(&mut guest, Operation::Data, 0, &bytes);
        sent.extend(bytes);
    }
    assert!(sent.len() > BUFFER as usize);
    assert!(guest.bench.device.connections[&stream.port].needs_room());
    stream.say(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH, &[]);
    guest.expect_nothing();
    // The guest's patience ends (Linux: 8 s), the peer gets it all nonetheless.
    stream.say(&mut guest, Operation::Reset, 0, &[]);
    assert!(read_to_end(&mut guest, &mut peer) == sent);
    assert!(guest.bench.device.connections.is_empty());
    guest.expect_nothing();
}

#[test]
fn what_the_peer_sent_before_it_left_arrives() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    peer.write_all(b"fire and forget").unwrap();
    drop(peer);
    let mut stream = guest.listen();
    let mut heard = Vec::new();
    let mut told = 0;
    while told != SHUTDOWN_BOTH {
        let (header, payload) = guest.next();
        match Operation::from_number(header.operation).unwrap() {
            Operation::Data => heard.extend(payload),
            Operation::Shutdown => told = header.flags,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, b"fire and forget");
    // What it says now is for nobody.
    stream.say(&mut guest, Operation::Data, 0, b"anybody there?");
    stream.say(&mut guest, Operation::Reset, 0, &[]);
    assert!(guest.bench.device.connections.is_empty());
    guest.expect_nothing();
}

#[test]
fn nobody_listens() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    let (request, _) = guest.expect(Operation::Request);
    Stream::new(request.src_port).say(&mut guest, Operation::Reset, 0, &[]);
    assert_hung_up(&mut guest, &mut peer);
    assert!(guest.bench.device.connections.is_empty());
}

#[test]
fn ten_megabytes_both_ways() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    let mut stream = guest.listen();
    let to_guest = pattern(10 << 20, 1);
    let to_host = pattern(10 << 20, 2);
    let (mut written, mut at_guest, mut at_host) = (0, Vec::new(), Vec::new());
    let (mut guest_done, mut rounds) = (false, 0_u32);
    let mut unread = 0;
    guest.bench.settle();
    while at_guest.len() < to_guest.len() || at_host.len() < to_host.len() {
        rounds += 1;
        assert!(rounds < 1_000_000, "{} {}", at_guest.len(), at_host.len());
        if written < to_guest.len()
            && let Ok(count) = peer.write(&to_guest[written..(written + 50_000).min(to_guest.len())])
        {
            written += count;
        }
        // The peer is slow at times.
        if rounds % 7 < 4 {
            read_available(&mut peer, &mut at_host);
        }
        guest.bench.serve().unwrap();
        guest.take();
        while let Some((header, payload)) = guest.packets.pop_front() {
            match Operation::from_number(header.operation).unwrap() {
                Operation::Data => {
                    unread += payload.len();
                    assert!(unread <= stream.buffer as usize, "more than the guest has room for");
                    at_guest.extend(payload);
                    stream.host_forwarded = header.fwd_cnt;
                }
                Operation::CreditUpdate => stream.host_forwarded = header.fwd_cnt,
                Operation::CreditRequest => {}
                other => panic!("{other:?}"),
            }
        }
        // So is the guest's program.
        if unread > 0 && rounds % 5 == 0 {
            stream.received = stream.received.wrapping_add(unread as u32);
            unread = 0;
            stream.say(&mut guest, Operation::CreditUpdate, 0, &[]);
        }
        let sent = stream.sent as usize;
        let len = stream.credit().min(to_host.len() - sent).min(1 + sent % 30_000);
        if len > 0 {
            stream.say(&mut guest, Operation::Data, 0, &to_host[sent..sent + len]);
        } else if sent == to_host.len() && !guest_done {
            guest_done = true;
        }
    }
    assert!(at_guest == to_guest);
    assert!(at_host == to_host);
}

#[test]
fn many_at_once_and_the_next_ones_wait() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peers: Vec<_> = (0..MAX_CONNECTIONS + 3).map(|_| host.connect()).collect();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.listen()).collect();
    guest.expect_nothing();
    assert_eq!(guest.bench.device.connections.len(), MAX_CONNECTIONS);
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.say(&mut guest, Operation::Data, 0, &pattern(1000, index as u64));
    }
    for (index, peer) in peers.iter_mut().take(MAX_CONNECTIONS).enumerate() {
        assert_eq!(read_exactly(&mut guest, peer, 1000), pattern(1000, index as u64));
        peer.write_all(&pattern(2000, index as u64)).unwrap();
    }
    let mut heard = HashMap::new();
    for _ in 0..MAX_CONNECTIONS {
        let (header, payload) = guest.expect(Operation::Data);
        heard.insert(header.src_port, payload);
    }
    for (index, stream) in streams.iter().enumerate() {
        assert_eq!(heard[&stream.port], pattern(2000, index as u64));
    }
    // One ends, so one more comes.
    streams[5].say(&mut guest, Operation::Reset, 0, &[]);
    let sixty_fifth = guest.listen();
    assert!(streams.iter().all(|stream| stream.port != sixty_fifth.port));
    guest.expect_nothing();
    // Some peers leave. The guest never reacts, but their places are wanted.
    drop(peers.drain(10..12));
    for _ in 0..2 {
        loop {
            let (header, _) = guest.next();
            match Operation::from_number(header.operation).unwrap() {
                Operation::Request => break,
                Operation::Shutdown | Operation::Reset => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(guest.bench.device.connections.len(), MAX_CONNECTIONS);
}

#[test]
fn a_stalled_connection_holds_nobody_up() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut stalled = host.connect();
    let mut slow = guest.listen();
    let mut peer = host.connect();
    let mut stream = guest.listen();
    // The guest's program never reads: its credit ends.
    let mut got = 0;
    for _ in 0..1000 {
        let _ = stalled.write(&[7; 65536]);
        guest.bench.settle();
        guest.take();
    }
    while let Some((header, _)) = guest.packets.pop_front() {
        got += header.len;
    }
    assert_eq!(got, slow.buffer);
    peer.write_all(b"me").unwrap();
    assert_eq!(guest.expect(Operation::Data).1, b"me");
    stream.say(&mut guest, Operation::Data, 0, b"you");
    assert_eq!(read_exactly(&mut guest, &mut peer, 3), b"you");
    // An answer that grants nothing does not start an exchange without end.
    slow.say(&mut guest, Operation::CreditUpdate, 0, &[]);
    guest.expect_nothing();
    slow.received = got;
    slow.say(&mut guest, Operation::CreditUpdate, 0, &[]);
    guest.expect(Operation::Data);
}

#[test]
fn does_not_spin_without_receive_buffers() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let mut peer = host.connect();
    let _stream = guest.listen();
    guest.refills = false;
    let sent = pattern(1 << 20, 3);
    let mut written = 0;
    loop {
        let count = peer.write(&sent[written..]).unwrap_or(0);
        written += count;
        guest.bench.settle();
        guest.take();
        if count == 0 {
            break;
        }
    }
    assert!(guest.kept.len() == 128 || written < sent.len());
    // New connections and packets do not change that.
    let _other = host.connect();
    guest.bench.settle();
    guest.refills = true;
    guest.take();
    let mut heard = Vec::new();
    while heard.len() < written.min(256 * 1024) {
        let (header, payload) = guest.next();
        if header.operation == Operation::Data as u16 {
            heard.extend(payload);
        }
    }
    assert!(sent.starts_with(&heard));
}

/// A connection, for tests of how it ends.
fn connected() -> (Host, Guest, UnixStream, Stream) {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    let peer = host.connect();
    let stream = guest.listen();
    (host, guest, peer, stream)
}

#[test]
fn more_than_the_credit_is_reset() {
    let (_host, mut guest, mut peer, mut stream) = connected();
    let mut sent = 0_usize;
    // Without regard to credit, to a peer that does not read.
    for _ in 0..100 {
        stream.say(&mut guest, Operation::Data, 0, &[1; 60_000]);
        sent += 60_000;
        if guest.packets.iter().any(|(header, _)| header.operation == Operation::Reset as u16) {
            break;
        }
        let kept =
            guest.bench.device.connections.values().map(|c| usize::from(c.needs_room())).sum::<usize>();
        assert!(kept <= 1);
    }
    assert!(sent < 6_000_000);
    assert!(guest.bench.device.connections.is_empty());
    let mut got = Vec::new();
    guest.bench.until("the end", |_| read_available(&mut peer, &mut got));
}

#[test]
fn what_breaks_the_rules_is_reset() {
    let data = |header: Header| (header, b"abc".to_vec());
    type Break = fn(Header) -> Header;
    let cases: &[(Operation, Break)] = &[
        (Operation::Data, |header| Header { len: u32::MAX, ..header }),
        (Operation::Data, |header| Header { len: 4, ..header }),
        (Operation::Data, |header| Header { kind: 2, ..header }),
        (Operation::Data, |header| Header { dst_cid: 77, ..header }),
        (Operation::Data, |header| Header { dst_port: 9, ..header }),
        (Operation::Data, |header| Header { src_port: 9, ..header }),
        (Operation::Data, |header| Header { operation: 0, ..header }),
        (Operation::Data, |header| Header { operation: 8, ..header }),
        (Operation::Request, |header| header),
        (Operation::Response, |header| header),
    ];
    for (operation, broken) in cases {
        let (_host, mut guest, _peer, stream) = connected();
        let (header, payload) = data(broken(stream.header(*operation, 0, 3)));
        guest.send(header, &payload);
        let (reset, _) = {
            guest.bench.settle();
            guest.take();
            guest.packets.pop_front().expect("an answer")
        };
        let expected = (header.dst_port, header.src_port, Operation::Reset as u16);
        if guest.bench.device.connections.is_empty() {
            assert_eq!((reset.src_port, reset.dst_port), (stream.port, PORT));
        } else {
            assert_eq!((reset.src_port, reset.dst_port, reset.operation), expected);
        }
        guest.expect_nothing();
    }
    // Resets of unknown connections are not answered, nor what another context seems to send.
    let (_host, mut guest, _peer, stream) = connected();
    guest.send(Header { dst_port: 9, ..stream.header(Operation::Reset, 0, 0) }, &[]);
    guest.send(Header { src_cid: 4, ..stream.header(Operation::Data, 0, 0) }, &[]);
    guest.expect_nothing();
    // The guest cannot connect to the host.
    guest.send(Header { dst_port: PORT, src_port: 5000, ..stream.header(Operation::Request, 0, 0) }, &[]);
    assert_eq!(guest.expect(Operation::Reset).0.dst_port, 5000);
}

#[test]
fn a_flood_of_strays_is_bounded() {
    let (host, port) = Host::new();
    let mut guest = Guest::new(vec![port]);
    guest.refills = false;
    let stray = Stream::new(5);
    for _ in 0..5000 {
        guest.send(stray.header(Operation::Request, 0, 0), &[]);
        guest.take();
        assert!(guest.bench.device.resets.len() <= MAX_RESETS);
    }
    guest.bench.settle();
    guest.refills = true;
    guest.take();
    guest.bench.settle();
    guest.take();
    guest.packets.clear();
    guest.bench.settle();
    guest.take();
    guest.packets.clear();
    let _peer = host.connect();
    guest.listen();
}

#[test]
fn what_breaks_the_ring_needs_a_reset() {
    let chains: &[&[(u64, u32, bool)]] = &[
        // Shorter than a header, writable, outside of memory.
        &[(OUT, 43, false)],
        &[(OUT, 44, true)],
        &[(OUT, 44, false), (OUT, 44, true)],
        &[(u64::MAX - 10, 44, false)],
        &[(OUT, u32::MAX, false)],
    ];
    for chain in chains {
        let (_host, mut guest, _peer, _stream) = connected();
        assert!(guest.bench.offer(TRANSMIT, chain).is_err(), "{chain:?}");
    }
    for chain in [&[(OUT, 43, true)], &[(OUT, 44, false)], &[(u64::MAX - 10, 44, true)]] {
        let (host, port) = Host::new();
        let mut bench = Bench::new(Vsock::new(vec![port]).unwrap(), FEATURES);
        bench.rings[RECEIVE].offer(chain).unwrap();
        let _peer = host.connect();
        assert!(bench.activate().is_err(), "{chain:?}");
    }
}

#[test]
fn a_payload_in_many_pieces() {
    let (_host, mut guest, mut peer, stream) = connected();
    let header = stream.header(Operation::Data, 0, 10).to_bytes();
    guest.bench.write(OUT, &header[..20]);
    guest.bench.write(OUT + 100, &header[20..]);
    guest.bench.write(OUT + 124, b"0123");
    guest.bench.write(OUT + 200, b"456789 and more that is not said to be there");
    let chain = [(OUT, 20, false), (OUT + 300, 0, false), (OUT + 100, 28, false), (OUT + 200, 40, false)];
    guest.bench.offer(TRANSMIT, &chain).unwrap().unwrap();
    assert_eq!(read_exactly(&mut guest, &mut peer, 10), b"0123456789");
}

#[test]
fn a_reset_forgets_and_serves_again() {
    let (host, mut guest, mut peer, _stream) = connected();
    let waiting = host.connect();
    guest.bench.device.reset();
    assert_hung_up(&mut guest, &mut peer);
    let mut guest =
        Guest::with(std::mem::replace(&mut guest.bench.device, Vsock::new(Vec::new()).unwrap()), FEATURES);
    guest.listen();
    drop(waiting);
}

#[test]
fn a_restored_guest_forgets_its_connections_first() {
    let (_host, guest, _peer, stream) = connected();
    let state = guest.bench.device.save();
    let text = serde_json::to_string(&state).unwrap();
    let state = serde_json::from_str(&text).unwrap();

    let (host, port) = Host::new();
    let mut device = Vsock::new(vec![port]).unwrap();
    device.restore(&state).unwrap();
    let mut restored = Guest::with(device, FEATURES);
    let _peer = host.connect();
    // The guest is told, and asked for no connection before it has reacted.
    restored.expect_nothing();
    let (head, len) = restored.bench.rings[EVENT].completed().expect("an event");
    assert_eq!(len, 4);
    assert!(restored.bench.rings[EVENT].completed().is_none());
    assert_eq!(restored.bench.read(BUFFERS - 64 + 8 * u64::from(15 - head), 4), [0; 4]);
    // What it still sends for an old connection is reset.
    restored.send(stream.header(Operation::Data, 0, 1), b"x");
    assert_eq!(restored.expect(Operation::Reset).0.src_port, stream.port);
    restored.expect_nothing();
    // It gives the buffer back.
    restored.bench.offer(EVENT, &[(BUFFERS - 64, 4, true)]).unwrap().unwrap();
    let new = restored.listen();
    assert_ne!(new.port, stream.port);
    assert!(restored.bench.rings[EVENT].completed().is_none());
}

#[test]
fn a_restored_guest_is_told_when_it_has_room_to_be() {
    let (host, port) = Host::new();
    let mut device = Vsock::new(vec![port]).unwrap();
    device.restore(&DeviceState::Vsock(State { next_port: 5000 })).unwrap();
    let mut bench = Bench::new(device, FEATURES);
    bench.activate().unwrap();
    let _peer = host.connect();
    bench.settle();
    bench.offer(EVENT, &[(BUFFERS, 4, true)]).unwrap().unwrap();
    assert!(bench.rings[EVENT].completed().is_some());
    bench.offer(EVENT, &[(BUFFERS, 4, true)]).unwrap().unwrap();
    bench.settle();
    assert_eq!(bench.device.connections.len(), 1);
}

#[test]
fn another_device_s_state_is_refused() {
    let mut device = Vsock::new(Vec::new()).unwrap();
    assert!(device.restore(&DeviceState::Entropy).is_err());
    for next_port in [0, 1023, u32::MAX] {
        assert!(device.restore(&DeviceState::Vsock(State { next_port })).is_err());
    }
}

#[test]
fn ports_are_not_used_twice_at_once() {
    let (host, port) = Host::new();
    let mut device = Vsock::new(vec![port]).unwrap();
    device.next_port = PORT_ANY - 1;
    let mut guest = Guest::with(device, FEATURES);
    let _peers: Vec<_> = (0..3).map(|_| host.connect()).collect();
    let mut ports: Vec<_> = (0..3).map(|_| guest.listen().port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [FIRST_PORT, FIRST_PORT + 1, PORT_ANY - 1]);
}

#[test]
fn configuration() {
    let device = Vsock::new(Vec::new()).unwrap();
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX - 3, &mut config);
    assert_eq!(config, [0; 12]);
}

/// What a guest may do, most of it wrong.
#[derive(Clone, Debug)]
enum Deed {
    Packet { port: u8, operation: u16, flags: u32, buf_alloc: u32, fwd_cnt: u32, len: u32, payload: u16 },
    Chain { queue: usize, chain: Vec<(u64, u32, bool)> },
    Descriptor { queue: usize, index: u16, bytes: [u8; 16] },
    Head { queue: usize, head: u16 },
    Take,
    Connect,
    Write(u16),
    Read,
    Leave,
}

fn deed() -> impl Strategy<Value = Deed> {
    let address = prop_oneof![Just(OUT), BUFFERS..BUFFERS + (60 << 20), any::<u64>()];
    let chain = prop::collection::vec((address, prop_oneof![0..5000_u32, any::<u32>()], any::<bool>()), 1..5);
    prop_oneof![
        8 => (any::<u8>(), 0..9_u16, 0..4_u32, any::<u32>(), any::<u32>(),
              prop_oneof![8 => 0..3000_u32, 1 => any::<u32>()], 0..3000_u16)
            .prop_map(|(port, operation, flags, buf_alloc, fwd_cnt, len, payload)| Deed::Packet {
                port, operation, flags, buf_alloc, fwd_cnt, len, payload
            }),
        1 => (0..3_usize, chain).prop_map(|(queue, chain)| Deed::Chain { queue, chain }),
        1 => (0..3_usize, 0..256_u16, any::<[u8; 16]>())
            .prop_map(|(queue, index, bytes)| Deed::Descriptor { queue, index, bytes }),
        1 => (0..3_usize, any::<u16>()).prop_map(|(queue, head)| Deed::Head { queue, head }),
        4 => Just(Deed::Take),
        3 => Just(Deed::Connect),
        3 => any::<u16>().prop_map(Deed::Write),
        2 => Just(Deed::Read),
        1 => Just(Deed::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever a guest does, the device ends with an error at most, and keeps what it may.
    #[test]
    fn nothing_that_a_guest_does_hurts(deeds in prop::collection::vec(deed(), 1..200)) {
        let (host, port) = Host::new();
        let mut guest = Guest::new(vec![port]);
        let mut peers: Vec<UnixStream> = Vec::new();
        for deed in deeds {
            let result = match deed {
                Deed::Packet { port, operation, flags, buf_alloc, fwd_cnt, len, payload } => {
                    let header = Header {
                        operation,
                        flags,
                        len,
                        buf_alloc,
                        fwd_cnt,
                        ..Stream::new(FIRST_PORT + u32::from(port % 16)).header(Operation::Data, 0, 0)
                    };
                    let address = OUT;
                    guest.bench.write(address, &header.to_bytes());
                    guest.bench.offer(TRANSMIT, &[(address, 44 + u32::from(payload), false)]).map(drop)
                }
                Deed::Chain { queue, chain } => guest.bench.offer(queue, &chain).map(drop),
                Deed::Descriptor { queue, index, bytes } => {
                    let size = [256, 256, 16][queue];
                    let address = guest.bench.rings[queue].descriptor(index % size);
                    guest.bench.write(address, &bytes);
                    Ok(())
                }
                Deed::Head { queue, head } => {
                    guest.bench.rings[queue].publish(head);
                    guest.bench.device.notified(queue, &mut guest.bench.vrings)
                }
                Deed::Take => {
                    while guest.bench.rings[TRANSMIT].completed().is_some() {}
                    for _ in 0..64 {
                        guest.bench.rings[RECEIVE].offer(&[(BUFFERS, 44, true), (BUFFERS + 64, 4096, true)]);
                    }
                    guest.bench.device.notified(RECEIVE, &mut guest.bench.vrings)
                }
                Deed::Connect => {
                    if peers.len() < 100 {
                        peers.push(host.connect());
                    }
                    guest.bench.serve().map(drop)
                }
                Deed::Write(len) => {
                    if let Some(peer) = peers.first_mut() {
                        let _ = peer.write(&vec![1; len.into()]);
                    }
                    guest.bench.serve().map(drop)
                }
                Deed::Read => {
                    for peer in &mut peers {
                        let _ = peer.read(&mut [0; 10_000]);
                    }
                    guest.bench.serve().map(drop)
                }
                Deed::Leave => {
                    peers.pop();
                    guest.bench.serve().map(drop)
                }
            };
            let device = &guest.bench.device;
            prop_assert!(device.connections.len() <= MAX_CONNECTIONS);
            prop_assert!(device.resets.len() <= MAX_RESETS);
            for connection in device.connections.values() {
                prop_assert!(connection.kept() <= BUFFER as usize);
            }
            if result.is_err() {
                break;
            }
        }
        guest.bench.device.reset();
        prop_assert!(guest.bench.device.connections.is_empty());
    }

    #[test]
    fn a_header_is_what_it_was(bytes in any::<[[u8; 11]; 4]>()) {
        let bytes: [u8; Header::SIZE] = bytes.concat().try_into().unwrap();
        prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    }
}
