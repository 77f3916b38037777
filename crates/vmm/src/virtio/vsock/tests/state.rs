//! Resets, snapshots and the configuration space.

use super::guest::*;
use crate::virtio::testing::{BUFFERS, Bench};
use crate::virtio::vsock::*;

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
    let (head, len) = restored.bench.driver.rings[EVENT].completed().expect("an event");
    assert_eq!(len, 4);
    assert!(restored.bench.driver.rings[EVENT].completed().is_none());
    assert_eq!(restored.bench.driver.read(BUFFERS - 64 + 8 * u64::from(15 - head), 4), [0; 4]);
    // What it still sends for an old connection is reset.
    restored.send(stream.header(Operation::Data, 0, 1), b"x");
    assert_eq!(restored.expect(Operation::Reset).0.src_port, stream.port);
    restored.expect_nothing();
    // It gives the buffer back.
    restored.bench.offer(EVENT, &[(BUFFERS - 64, 4, true)]).unwrap().unwrap();
    let new = restored.listen();
    assert_ne!(new.port, stream.port);
    assert!(restored.bench.driver.rings[EVENT].completed().is_none());
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
    assert!(bench.driver.rings[EVENT].completed().is_some());
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
