//! Guests that do not keep to the rules.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::guest::*;
use crate::virtio::testing::{BUFFERS, Bench};
use crate::virtio::vsock::connection::BUFFER;
use crate::virtio::vsock::*;

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
        &[(OUT, 44, false), (OUT + 300, 0, false)],
    ];
    for chain in chains {
        let (_host, mut guest, _peer, _stream) = connected();
        assert!(guest.bench.offer(TRANSMIT, chain).is_err(), "{chain:?}");
    }
    for chain in [&[(OUT, 43, true)], &[(OUT, 44, false)], &[(u64::MAX - 10, 44, true)]] {
        let (host, port) = Host::new();
        let mut bench = Bench::new(Vsock::new(vec![port]).unwrap(), FEATURES);
        bench.driver.rings[RECEIVE].offer(chain).unwrap();
        let _peer = host.connect();
        assert!(bench.activate().is_err(), "{chain:?}");
    }
}

#[test]
fn a_payload_in_many_pieces() {
    let (_host, mut guest, mut peer, stream) = connected();
    let header = stream.header(Operation::Data, 0, 10).to_bytes();
    guest.bench.driver.write(OUT, &header[..20]);
    guest.bench.driver.write(OUT + 100, &header[20..]);
    guest.bench.driver.write(OUT + 124, b"0123");
    guest.bench.driver.write(OUT + 200, b"456789 and more that is not said to be there");
    let chain = [(OUT, 20, false), (OUT + 100, 28, false), (OUT + 200, 40, false)];
    guest.bench.offer(TRANSMIT, &chain).unwrap().unwrap();
    assert_eq!(read_exactly(&mut guest, &mut peer, 10), b"0123456789");
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
                    guest.bench.driver.write(address, &header.to_bytes());
                    guest.bench.offer(TRANSMIT, &[(address, 44 + u32::from(payload), false)]).map(drop)
                }
                Deed::Chain { queue, chain } => guest.bench.offer(queue, &chain).map(drop),
                Deed::Descriptor { queue, index, bytes } => {
                    let size = [256, 256, 16][queue];
                    let address = guest.bench.driver.rings[queue].descriptor(index % size);
                    guest.bench.driver.write(address, &bytes);
                    Ok(())
                }
                Deed::Head { queue, head } => {
                    guest.bench.driver.rings[queue].publish(head);
                    guest.bench.device.notified(queue, &mut guest.bench.driver.vrings)
                }
                Deed::Take => {
                    while guest.bench.driver.rings[TRANSMIT].completed().is_some() {}
                    for _ in 0..64 {
                        guest.bench.driver.rings[RECEIVE].offer(&[(BUFFERS, 44, true), (BUFFERS + 64, 4096, true)]);
                    }
                    guest.bench.device.notified(RECEIVE, &mut guest.bench.driver.vrings)
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
