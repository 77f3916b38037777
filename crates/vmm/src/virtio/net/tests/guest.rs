//! A guest's driver, and frames.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::wire::{self, IPV4, Wire, ready_tap};
use crate::virtio::net::*;
use crate::virtio::testing::{BUFFERS, Bench};

pub(super) const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// Where the guest's transmit buffers lie.
pub(super) const OUT: u64 = BUFFERS + (32 << 20);
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, `VIRTIO_NET_HDR_GSO_TCPV4`.
pub(super) const NEEDS_CSUM: u8 = 1;
pub(super) const TCPV4: u8 = 1;

pub(super) fn all_features() -> u64 {
    Net::new(None, MAC, None, None, None).unwrap().features()
}

/// A guest's driver.
pub(super) struct Guest {
    pub(super) bench: Bench<Net>,
    /// Bytes in each receive buffer; how many buffers.
    pub(super) room: u32,
    pub(super) refills: bool,
    pub(super) buffers: HashMap<u16, u64>,
    pub(super) kept: Vec<u64>,
    pub(super) frames: VecDeque<([u8; HEADER], Vec<u8>)>,
}

impl Guest {
    pub(super) fn new(device: Net, features: u64, room: u32, count: u64) -> Self {
        let mut guest = Self {
            bench: Bench::new(device, features),
            room,
            refills: true,
            buffers: HashMap::new(),
            kept: (0..count).map(|index| BUFFERS + index * u64::from(room.next_multiple_of(64))).collect(),
            frames: VecDeque::new(),
        };
        guest.bench.activate().unwrap();
        guest.refill();
        guest
    }

    /// On a real tap, with everything negotiated, and buffers like those of Linux.
    pub(super) fn on_tap(mtu: u32) -> Self {
        let device = Net::new(Some(ready_tap(mtu)), MAC, None, None, None).unwrap();
        Self::new(device, all_features(), 1536, 256)
    }

    pub(super) fn refill(&mut self) {
        while let Some(address) = self.kept.pop() {
            let head = self.bench.offer(RECEIVE, &[(address, self.room, true)]).unwrap().unwrap();
            self.buffers.insert(head, address);
        }
    }

    pub(super) fn take(&mut self) {
        while let Some((head, len)) = self.bench.driver.rings[RECEIVE].completed() {
            let mut bytes = self.use_buffer(head, len);
            let header: [u8; HEADER] = bytes[..HEADER].try_into().unwrap();
            bytes.drain(..HEADER);
            let count = u16::from_le_bytes([header[10], header[11]]);
            for _ in 1..count {
                // All of a frame's buffers appear at once.
                let (head, len) = self.bench.driver.rings[RECEIVE].completed().expect("a missing buffer");
                bytes.extend(self.use_buffer(head, len));
            }
            self.frames.push_back((header, bytes));
        }
        while self.bench.driver.rings[TRANSMIT].completed().is_some() {}
        if self.refills {
            self.refill();
        }
    }

    pub(super) fn use_buffer(&mut self, head: u16, len: u32) -> Vec<u8> {
        let address = self.buffers.remove(&head).unwrap();
        self.kept.push(address);
        assert!(len <= self.room);
        self.bench.driver.read(address, len as usize)
    }

    pub(super) fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let address = OUT + u64::from(self.bench.driver.rings[TRANSMIT].available_index() % 128) * 0x2_0000;
        self.bench.driver.write(address, &header);
        self.bench.driver.write(address + HEADER as u64, frame);
        let chain = [
            (address, HEADER as u32, false),
            (address + HEADER as u64, 1, false),
            (address + HEADER as u64 + 1, frame.len() as u32 - 1, false),
        ];
        self.bench.offer(TRANSMIT, &chain).unwrap().unwrap();
        self.take();
    }

    pub(super) fn next(&mut self) -> ([u8; HEADER], Vec<u8>) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return frame;
            }
            assert!(std::time::Instant::now() < deadline, "no frame came");
            self.bench.serve_within(Duration::from_millis(5)).unwrap();
            self.take();
        }
    }

    /// Sends at the host's end, until there is room in the tap.
    pub(super) fn host_sends(&mut self, wire: &Wire, header: [u8; wire::HEADER], frame: &[u8]) {
        self.bench.until("room in the tap", |_| match wire.send(header, frame) {
            Ok(()) => true,
            Err(error) => {
                assert!(
                    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)),
                    "{error}, {} bytes",
                    frame.len()
                );
                false
            }
        });
    }
}

pub(super) fn frame(ether_type: u16, len: usize, seed: u8) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 2], &ether_type.to_be_bytes()].concat();
    frame.extend((0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed));
    frame
}

/// A TCP segment, far longer than the MTU, and the header that has it cut.
pub(super) fn large_segment(payload: usize) -> ([u8; wire::HEADER], Vec<u8>) {
    let mut segment = frame(IPV4, 40 + payload, 9);
    let total = u16::try_from(40 + payload).unwrap().to_be_bytes();
    let ip = [0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    segment[14..34].copy_from_slice(&ip);
    let sum = !ip.chunks(2).fold(0, |sum: u32, pair| {
        let sum = sum + u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        (sum & 0xffff) + (sum >> 16)
    }) as u16;
    segment[24..26].copy_from_slice(&sum.to_be_bytes());
    // Ports, sequence, acknowledgement, 20 bytes of header, ACK, window; the checksum is partial.
    segment[34..54].copy_from_slice(&[4, 0, 4, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    let mut header = [0; wire::HEADER];
    header[0] = NEEDS_CSUM;
    header[1] = TCPV4;
    header[2..4].copy_from_slice(&54_u16.to_le_bytes());
    header[4..6].copy_from_slice(&1400_u16.to_le_bytes());
    header[6..8].copy_from_slice(&34_u16.to_le_bytes());
    header[8..10].copy_from_slice(&16_u16.to_le_bytes());
    (header, segment)
}

pub(super) fn with_buffers(header: [u8; wire::HEADER]) -> [u8; HEADER] {
    let mut longer = [0; HEADER];
    longer[..wire::HEADER].copy_from_slice(&header);
    longer
}
