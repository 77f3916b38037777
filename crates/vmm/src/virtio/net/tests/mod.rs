mod wire;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use model::microvm::TokenBucket;
use proptest::prelude::*;

use self::wire::{EXPERIMENTAL, IPV4, NAME, Wire, in_network_namespace, ip, ready_tap, tap};
use super::*;
use crate::virtio::testing::{BUFFERS, Bench, filtered};

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// Where the guest's transmit buffers lie.
const OUT: u64 = BUFFERS + (32 << 20);
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, `VIRTIO_NET_HDR_GSO_TCPV4`.
const NEEDS_CSUM: u8 = 1;
const TCPV4: u8 = 1;

fn all_features() -> u64 {
    Net::new(None, MAC, None, None, None).unwrap().features()
}

/// A guest's driver.
struct Guest {
    bench: Bench<Net>,
    /// Bytes in each receive buffer; how many buffers.
    room: u32,
    refills: bool,
    buffers: HashMap<u16, u64>,
    kept: Vec<u64>,
    frames: VecDeque<([u8; HEADER], Vec<u8>)>,
}

impl Guest {
    fn new(device: Net, features: u64, room: u32, count: u64) -> Self {
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
    fn on_tap(mtu: u32) -> Self {
        let device = Net::new(Some(ready_tap(mtu)), MAC, None, None, None).unwrap();
        Self::new(device, all_features(), 1536, 256)
    }

    fn refill(&mut self) {
        while let Some(address) = self.kept.pop() {
            let head = self.bench.offer(RECEIVE, &[(address, self.room, true)]).unwrap().unwrap();
            self.buffers.insert(head, address);
        }
    }

    fn take(&mut self) {
        while let Some((head, len)) = self.bench.rings[RECEIVE].completed() {
            let mut bytes = self.use_buffer(head, len);
            let header: [u8; HEADER] = bytes[..HEADER].try_into().unwrap();
            bytes.drain(..HEADER);
            let count = u16::from_le_bytes([header[10], header[11]]);
            for _ in 1..count {
                // All of a frame's buffers appear at once.
                let (head, len) = self.bench.rings[RECEIVE].completed().expect("a missing buffer");
                bytes.extend(self.use_buffer(head, len));
            }
            self.frames.push_back((header, bytes));
        }
        while self.bench.rings[TRANSMIT].completed().is_some() {}
        if self.refills {
            self.refill();
        }
    }

    fn use_buffer(&mut self, head: u16, len: u32) -> Vec<u8> {
        let address = self.buffers.remove(&head).unwrap();
        self.kept.push(address);
        assert!(len <= self.room);
        self.bench.read(address, len as usize)
    }

    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let address = OUT + u64::from(self.bench.rings[TRANSMIT].available_index() % 128) * 0x2_0000;
        self.bench.write(address, &header);
        self.bench.write(address + HEADER as u64, frame);
        let chain = [
            (address, HEADER as u32, false),
            (address + HEADER as u64, 1, false),
            (address + HEADER as u64 + 1, frame.len() as u32 - 1, false),
        ];
        self.bench.offer(TRANSMIT, &chain).unwrap().unwrap();
        self.take();
    }

    fn next(&mut self) -> ([u8; HEADER], Vec<u8>) {
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
    fn host_sends(&mut self, wire: &Wire, header: [u8; wire::HEADER], frame: &[u8]) {
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

fn frame(ether_type: u16, len: usize, seed: u8) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 2], &ether_type.to_be_bytes()].concat();
    frame.extend((0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed));
    frame
}

/// A TCP segment, far longer than the MTU, and the header that has it cut.
fn large_segment(payload: usize) -> ([u8; wire::HEADER], Vec<u8>) {
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

fn with_buffers(header: [u8; wire::HEADER]) -> [u8; HEADER] {
    let mut longer = [0; HEADER];
    longer[..wire::HEADER].copy_from_slice(&header);
    longer
}

#[test]
fn configuration_and_link() {
    let mut device = Net::new(None, MAC, Some(1400), None, None).unwrap();
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0x78, 5, 0, 0]);
    assert_ne!(device.features() & (1 << VIRTIO_NET_F_MTU), 0);
    assert_eq!(all_features() & (1 << VIRTIO_NET_F_MTU), 0);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 14]);
    assert!(device.restore(&DeviceState::Entropy).is_err());
    assert!(Net::new(None, MAC, Some(67), None, None).is_err());
}

#[test]
fn without_a_tap_frames_go_nowhere() {
    let device = Net::new(None, MAC, None, None, None).unwrap();
    let mut guest = Guest::new(device, all_features(), 1536, 16);
    guest.send([0; HEADER], &frame(EXPERIMENTAL, 100, 0));
    guest.bench.settle();
    assert!(guest.bench.interrupts() > 0);
    assert!(guest.frames.is_empty());
}

#[test]
fn a_restored_device_has_its_cable_plugged_in() {
    in_network_namespace(|| {
        let template = Net::new(None, MAC, Some(1400), None, None).unwrap();
        let state: DeviceState =
            serde_json::from_str(&serde_json::to_string(&template.save()).unwrap()).unwrap();
        let mut device = Net::new(Some(ready_tap(1500)), MAC, None, None, None).unwrap();
        device.restore(&state).unwrap();
        assert_eq!(device.features() & template.features(), template.features());
        let mut config = [0; 12];
        device.read_config(0, &mut config);
        assert_eq!(config[6], 1);
        let mut guest = Guest::new(device, template.features(), 1536, 64);
        // The configuration's interrupt.
        assert_ne!(guest.bench.vrings.interrupt.status() & 2, 0);
        let wire = Wire::new(EXPERIMENTAL);
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 60, 1));
        assert_eq!(guest.next().1, frame(EXPERIMENTAL, 60, 1));
    });
}

#[test]
fn only_taps_of_the_right_kind() {
    in_network_namespace(|| {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(Net::new(Some(file), MAC, None, None, None).is_err());
        let bare = tap(libc::IFF_TAP | libc::IFF_NO_PI);
        assert!(Net::new(Some(bare), MAC, None, None, None).is_err());
        let tun = tap(libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        assert!(Net::new(Some(tun), MAC, None, None, None).is_err());
    });
}

#[test]
fn ten_megabytes_both_ways() {
    in_network_namespace(|| {
        let mut guest = Guest::on_tap(60_000);
        let wire = Wire::new(EXPERIMENTAL);
        let (mut there, mut back) = (0, 0);
        let mut seed = 0_u8;
        let mut size = 46;
        while there < 10 << 20 || back < 10 << 20 {
            seed = seed.wrapping_add(1);
            size = (size * 7 + 13) % 59_000 + 46;
            let sent = frame(EXPERIMENTAL, size, seed);
            guest.host_sends(&wire, [0; wire::HEADER], &sent);
            let (header, received) = guest.next();
            assert!(received == sent);
            assert_eq!(header[..wire::HEADER], [0; wire::HEADER]);
            there += received.len();

            guest.send([0; HEADER], &sent);
            let mut heard = None;
            guest.bench.until("the frame at the host", |_| {
                heard = wire.receive();
                heard.is_some()
            });
            let (_, received) = heard.unwrap();
            assert!(received == sent);
            back += received.len();
        }
        guest.bench.settle();
    });
}

#[test]
fn makes_only_the_system_calls_of_a_device_thread() {
    in_network_namespace(|| {
        let limit = RateLimit { bytes: Some(TokenBucket { rate: 1 << 30, burst: 50 }), operations: None };
        filtered(
            "virtio::net::tests::makes_only_the_system_calls_of_a_device_thread",
            move || {
                let device = Net::new(Some(ready_tap(1500)), MAC, None, Some(limit), Some(limit)).unwrap();
                let wire = Wire::new(EXPERIMENTAL);
                for seed in 0..3 {
                    wire.send([0; wire::HEADER], &frame(EXPERIMENTAL, 100, seed)).unwrap();
                }
                (device, wire)
            },
            |(device, wire)| {
                let mut guest = Guest::new(device, all_features(), 1536, 256);
                for seed in 0..3 {
                    assert!(guest.next().1 == frame(EXPERIMENTAL, 100, seed));
                    guest.send([0; HEADER], &frame(EXPERIMENTAL, 100, seed));
                }
                let mut heard = 0;
                guest.bench.until("frames at the host", |_| {
                    heard += usize::from(wire.receive().is_some());
                    heard == 3
                });
                guest.bench.device.reset();
            },
            || {},
        );
    });
}

#[test]
fn what_is_made_here_is_made_within_the_main_thread_s_filter() {
    in_network_namespace(|| {
        let tap = ready_tap(1500);
        filtered(
            "virtio::net::tests::what_is_made_here_is_made_within_the_main_thread_s_filter",
            move || tap,
            // The main thread may do all that a device thread may.
            |tap| drop(Net::new(Some(tap), MAC, None, None, None).unwrap()),
            || {},
        );
    });
}

#[test]
fn many_frames_at_once() {
    in_network_namespace(|| {
        let mut guest = Guest::on_tap(1500);
        let wire = Wire::new(EXPERIMENTAL);
        for round in 0..10_u8 {
            for index in 0..200 {
                guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 1000 + index, round));
            }
            for index in 0..200 {
                assert!(guest.next().1 == frame(EXPERIMENTAL, 1000 + index, round));
            }
        }
    });
}

#[test]
fn large_segments_pass_uncut() {
    in_network_namespace(|| {
        let mut guest = Guest::on_tap(1500);
        let wire = Wire::new(IPV4);
        let (header, segment) = large_segment(60_000);
        guest.host_sends(&wire, header, &segment);
        let (got, received) = guest.next();
        assert!(received == segment);
        assert_eq!(got[0] & NEEDS_CSUM, NEEDS_CSUM);
        assert_eq!((got[1], &got[4..6]), (TCPV4, &header[4..6]));
        assert_eq!(got[10], 40);

        guest.send(with_buffers(header), &segment);
        let mut heard = None;
        guest.bench.until("the segment at the host", |_| {
            heard = wire.receive();
            heard.is_some()
        });
        let (got, received) = heard.unwrap();
        assert!(received == segment);
        assert_eq!((got[1], &got[4..6]), (TCPV4, &header[4..6]));
    });
}

#[test]
fn a_driver_that_takes_nothing_on_gets_whole_frames() {
    in_network_namespace(|| {
        let device = Net::new(Some(ready_tap(1500)), MAC, None, None, None).unwrap();
        let features = 1 << VIRTIO_F_VERSION_1;
        let mut guest = Guest::new(device, features, 1526, 64);
        let wire = Wire::new(IPV4);
        let (header, segment) = large_segment(20_000);
        guest.host_sends(&wire, header, &segment);
        let mut payload = 0;
        while payload < 20_000 {
            let (header, received) = guest.next();
            // One buffer each, checksummed, of the segment size.
            assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert!(received.len() <= 1454);
            payload += received.len() - 54;
        }
        assert_eq!(payload, 20_000);
        // What it did not negotiate, it cannot use.
        guest.send(with_buffers(header), &segment);
        let mut checksum = with_buffers(header);
        checksum[1] = 0;
        guest.send(checksum, &segment[..1000]);
        guest.send([0; HEADER], &segment[..500]);
        let mut heard = None;
        guest.bench.until("the frame at the host", |_| {
            heard = wire.receive();
            heard.is_some()
        });
        assert!(heard.unwrap().1 == segment[..500]);
        assert!(wire.receive().is_none());
    });
}

#[test]
fn a_frame_waits_for_room() {
    in_network_namespace(|| {
        let device = Net::new(Some(ready_tap(9000)), MAC, None, None, None).unwrap();
        // Four buffers; the frame needs six.
        let mut guest = Guest::new(device, all_features(), 1536, 4);
        guest.refills = false;
        let wire = Wire::new(EXPERIMENTAL);
        let large = frame(EXPERIMENTAL, 8000, 1);
        let small = frame(EXPERIMENTAL, 100, 2);
        guest.host_sends(&wire, [0; wire::HEADER], &large);
        guest.host_sends(&wire, [0; wire::HEADER], &small);
        guest.bench.settle();
        guest.take();
        assert!(guest.frames.is_empty());
        guest.kept = (0..4).map(|index| BUFFERS + (1 << 20) + index * 2048).collect();
        guest.refill();
        guest.bench.settle();
        guest.take();
        assert!(guest.frames.pop_front().unwrap().1 == large);
        assert!(guest.frames.pop_front().unwrap().1 == small);
    });
}

#[test]
fn a_frame_longer_than_the_buffers_is_dropped() {
    in_network_namespace(|| {
        let device = Net::new(Some(ready_tap(9000)), MAC, None, None, None).unwrap();
        let features = all_features() & !(1 << VIRTIO_NET_F_MRG_RXBUF);
        let mut guest = Guest::new(device, features, 1536, 16);
        let wire = Wire::new(EXPERIMENTAL);
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 3000, 1));
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 1511, 2));
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 1510, 3));
        assert!(guest.next().1 == frame(EXPERIMENTAL, 1510, 3));

        // Nor does it fit into all buffers that a ring can hold.
        let mut guest = {
            drop(guest);
            let device = Net::new(Some(ready_tap(9000)), MAC, None, None, None).unwrap();
            Guest::new(device, all_features(), 16, 256)
        };
        let wire = Wire::new(EXPERIMENTAL);
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 8000, 1));
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 900, 3));
        assert!(guest.next().1 == frame(EXPERIMENTAL, 900, 3));
    });
}

#[test]
fn does_not_spin_without_buffers() {
    in_network_namespace(|| {
        let device = Net::new(Some(ready_tap(1500)), MAC, None, None, None).unwrap();
        let mut guest = Guest::new(device, all_features(), 1536, 0);
        let wire = Wire::new(EXPERIMENTAL);
        for seed in 0..50 {
            guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 100, seed));
        }
        // Fails if it spins.
        guest.bench.settle();
        guest.kept = (0..64).map(|index| BUFFERS + index * 2048).collect();
        guest.refill();
        for seed in 0..50 {
            assert!(guest.next().1 == frame(EXPERIMENTAL, 100, seed));
        }
    });
}

#[test]
fn the_tap_goes() {
    in_network_namespace(|| {
        let mut guest = Guest::on_tap(1500);
        guest.bench.settle();
        ip(&["link", "delete", NAME]);
        guest.bench.until("the link to be down", |bench| {
            let mut status = [0; 2];
            bench.device.read_config(6, &mut status);
            status == [0; 2]
        });
        assert_ne!(guest.bench.vrings.interrupt.status() & 2, 0);
        guest.bench.settle();
        guest.send([0; HEADER], &frame(EXPERIMENTAL, 100, 0));
        guest.bench.device.reset();
    });
}

#[test]
fn limits_hold_and_lose_nothing() {
    in_network_namespace(|| {
        let limit = RateLimit {
            bytes: None,
            // Nothing comes back while the test looks, until it says so.
            operations: Some(TokenBucket { rate: 20, burst: 3 }),
        };
        let device = Net::new(Some(ready_tap(1500)), MAC, None, Some(limit), Some(limit)).unwrap();
        assert_eq!(device.sources().len(), 3);
        let mut guest = Guest::new(device, all_features(), 1536, 256);
        let wire = Wire::new(EXPERIMENTAL);
        let started = std::time::Instant::now();
        for seed in 0..8 {
            guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 100, seed));
            guest.send([0; HEADER], &frame(EXPERIMENTAL, 200, seed));
        }
        for seed in 0..8 {
            assert!(guest.next().1 == frame(EXPERIMENTAL, 100, seed));
        }
        let mut heard = Vec::new();
        guest.bench.until("all frames at the host", |_| {
            heard.extend(wire.receive());
            heard.len() == 8
        });
        for (seed, (_, received)) in (0..).zip(&heard) {
            assert!(*received == frame(EXPERIMENTAL, 200, seed));
        }
        // 3 at once, 5 more at 20 a second: no sooner, however slow the machine is.
        assert!(started.elapsed() >= Duration::from_millis(250));
    });
}

#[test]
fn malformed_chains() {
    in_network_namespace(|| {
        let mut guest = Guest::on_tap(1500);
        let wire = Wire::new(EXPERIMENTAL);
        // Dropped: no header, no frame, too long.
        for len in [1, 11, 12, 13, 20, 65563, 200_000] {
            guest.bench.offer(TRANSMIT, &[(OUT, len, false)]).unwrap().unwrap();
            let (_, written) = guest.bench.rings[TRANSMIT].completed().unwrap();
            assert_eq!(written, 0);
        }
        guest.send([0; HEADER], &frame(EXPERIMENTAL, 100, 7));
        guest.bench.until("a good one", |_| {
            wire.receive().is_some_and(|(_, received)| received == frame(EXPERIMENTAL, 100, 7))
        });
        drop(guest);
        // The driver is beyond help.
        for chain in [
            &[(OUT, 100, true)][..],
            &[(OUT, 12, false), (OUT, 100, true)],
            &[(u64::MAX, 100, false)],
            &[(OUT, u32::MAX, false)],
        ] {
            let mut guest = Guest::on_tap(1500);
            assert!(guest.bench.offer(TRANSMIT, chain).is_err(), "{chain:?}");
        }
        for chain in [&[(OUT, 100, false)], &[(OUT, 11, true)], &[(u64::MAX, 100, true)]] {
            let device = Net::new(Some(ready_tap(1500)), MAC, None, None, None).unwrap();
            let mut guest = Guest::new(device, all_features(), 1536, 0);
            let wire = Wire::new(EXPERIMENTAL);
            guest.bench.rings[RECEIVE].offer(chain).unwrap();
            wire.send([0; wire::HEADER], &frame(EXPERIMENTAL, 100, 0)).unwrap();
            let failed = (0..100).any(|_| guest.bench.serve_within(Duration::from_millis(50)).is_err());
            assert!(failed, "{chain:?}");
        }
    });
}

#[test]
fn a_reset_drops_what_was_held() {
    in_network_namespace(|| {
        let device = Net::new(Some(ready_tap(9000)), MAC, None, None, None).unwrap();
        let mut guest = Guest::new(device, all_features(), 1536, 1);
        let wire = Wire::new(EXPERIMENTAL);
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 8000, 1));
        guest.bench.settle();
        guest.bench.device.reset();
        let device =
            std::mem::replace(&mut guest.bench.device, Net::new(None, MAC, None, None, None).unwrap());
        let mut guest = Guest::new(device, all_features(), 1536, 64);
        guest.host_sends(&wire, [0; wire::HEADER], &frame(EXPERIMENTAL, 100, 2));
        assert!(guest.next().1 == frame(EXPERIMENTAL, 100, 2));
    });
}

#[derive(Clone, Debug)]
enum Deed {
    Transmit { header: [u8; HEADER], len: u32, pieces: u32 },
    Chain { queue: usize, chain: Vec<(u64, u32, bool)> },
    Buffers { room: u32, count: u8 },
    Descriptor { queue: usize, index: u16, bytes: [u8; 16] },
    Head { queue: usize, head: u16 },
    Frame(u16),
    Take,
}

fn deed() -> impl Strategy<Value = Deed> {
    let address = prop_oneof![Just(OUT), BUFFERS..BUFFERS + (60 << 20), any::<u64>()];
    let chain =
        prop::collection::vec((address, prop_oneof![0..70_000_u32, any::<u32>()], any::<bool>()), 1..5);
    prop_oneof![
        6 => (prop_oneof![Just([0; HEADER]), any::<[u8; HEADER]>()], 0..70_000_u32, 1..6_u32)
            .prop_map(|(header, len, pieces)| Deed::Transmit { header, len, pieces }),
        1 => (0..2_usize, chain).prop_map(|(queue, chain)| Deed::Chain { queue, chain }),
        4 => (12..5000_u32, any::<u8>()).prop_map(|(room, count)| Deed::Buffers { room, count }),
        1 => (0..2_usize, 0..256_u16, any::<[u8; 16]>())
            .prop_map(|(queue, index, bytes)| Deed::Descriptor { queue, index, bytes }),
        1 => (0..2_usize, any::<u16>()).prop_map(|(queue, head)| Deed::Head { queue, head }),
        6 => (46..8900_u16).prop_map(Deed::Frame),
        3 => Just(Deed::Take),
    ]
}

/// Whatever a guest does, the device ends with an error at most.
fn survives(features: u64, deeds: Vec<Deed>) {
    let device = Net::new(Some(ready_tap(9000)), MAC, None, None, None).unwrap();
    let mut guest = Guest::new(device, features, 1536, 0);
    let wire = Wire::new(EXPERIMENTAL);
    for deed in deeds {
        let result = match deed {
            Deed::Transmit { header, len, pieces } => {
                guest.bench.write(OUT, &header);
                let chain: Vec<_> = (0..pieces)
                    .map(|index| {
                        let each = len / pieces;
                        (OUT + u64::from(index * each), each, false)
                    })
                    .collect();
                guest.bench.offer(TRANSMIT, &chain).map(drop)
            }
            Deed::Chain { queue, chain } => guest.bench.offer(queue, &chain).map(drop),
            Deed::Buffers { room, count } => {
                for index in 0..u64::from(count) {
                    guest.bench.rings[RECEIVE].offer(&[(BUFFERS + index * 8192, room, true)]);
                }
                guest.bench.device.notified(RECEIVE, &mut guest.bench.vrings)
            }
            Deed::Descriptor { queue, index, bytes } => {
                let address = guest.bench.rings[queue].descriptor(index);
                guest.bench.write(address, &bytes);
                Ok(())
            }
            Deed::Head { queue, head } => {
                guest.bench.rings[queue].publish(head);
                guest.bench.device.notified(queue, &mut guest.bench.vrings)
            }
            Deed::Frame(len) => {
                let _ = wire.send([0; wire::HEADER], &frame(EXPERIMENTAL, len.into(), 1));
                guest.bench.serve().map(drop)
            }
            Deed::Take => {
                for ring in &mut guest.bench.rings {
                    while ring.completed().is_some() {}
                }
                guest.bench.serve().map(drop)
            }
        };
        if result.is_err() {
            break;
        }
    }
    guest.bench.device.reset();
}

#[test]
fn nothing_that_a_guest_does_hurts() {
    in_network_namespace(|| {
        let mergeable = 1 << VIRTIO_NET_F_MRG_RXBUF;
        let features = prop_oneof![
            Just(all_features()),
            Just(all_features() & !mergeable),
            Just(1 << VIRTIO_F_VERSION_1)
        ];
        proptest!(
            ProptestConfig { cases: 100, ..ProptestConfig::default() },
            |(features in features, deeds in prop::collection::vec(deed(), 1..150))| survives(features, deeds)
        );
    });
}
