//! Frames both ways, and what becomes of those that do not fit.

use std::time::Duration;

use model::microvm::TokenBucket;

use super::guest::*;
use super::wire::{self, EXPERIMENTAL, IPV4, NAME, Wire, in_network_namespace, ip, ready_tap, tap};
use crate::virtio::net::*;
use crate::virtio::testing::{BUFFERS, filtered};

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
    assert!(guest.bench.driver.interrupt_count() > 0);
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
        assert_ne!(guest.bench.driver.vrings.interrupt.status() & 2, 0);
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
            "virtio::net::tests::frames::makes_only_the_system_calls_of_a_device_thread",
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
            "virtio::net::tests::frames::what_is_made_here_is_made_within_the_main_thread_s_filter",
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
        assert_ne!(guest.bench.driver.vrings.interrupt.status() & 2, 0);
        assert_eq!(guest.bench.device.gone(), Some("network interface"));
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
