//! Guests that do not keep to the rules, and resets.

use std::time::Duration;

use proptest::prelude::*;

use super::guest::*;
use super::wire::{self, EXPERIMENTAL, Wire, in_network_namespace, ready_tap};
use crate::virtio::net::*;
use crate::virtio::testing::BUFFERS;

#[test]
fn malformed_chains() {
    in_network_namespace(|| {
        let mut guest = Guest::on_tap(1500);
        let wire = Wire::new(EXPERIMENTAL);
        // Dropped: no header, no frame, too long.
        for len in [1, 11, 12, 13, 20, 65563, 200_000] {
            guest.bench.offer(TRANSMIT, &[(OUT, len, false)]).unwrap().unwrap();
            let (_, written) = guest.bench.driver.rings[TRANSMIT].completed().unwrap();
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
            guest.bench.driver.rings[RECEIVE].offer(chain).unwrap();
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
                guest.bench.driver.write(OUT, &header);
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
                    guest.bench.driver.rings[RECEIVE].offer(&[(BUFFERS + index * 8192, room, true)]);
                }
                guest.bench.device.notified(RECEIVE, &mut guest.bench.driver.vrings)
            }
            Deed::Descriptor { queue, index, bytes } => {
                let address = guest.bench.driver.rings[queue].descriptor(index);
                guest.bench.driver.write(address, &bytes);
                Ok(())
            }
            Deed::Head { queue, head } => {
                guest.bench.driver.rings[queue].publish(head);
                guest.bench.device.notified(queue, &mut guest.bench.driver.vrings)
            }
            Deed::Frame(len) => {
                let _ = wire.send([0; wire::HEADER], &frame(EXPERIMENTAL, len.into(), 1));
                guest.bench.serve().map(drop)
            }
            Deed::Take => {
                for ring in &mut guest.bench.driver.rings {
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
