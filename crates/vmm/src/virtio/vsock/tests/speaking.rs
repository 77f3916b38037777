//! Connections of those who keep to the rules.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;

use super::guest::*;
use crate::virtio::testing::filtered;
use crate::virtio::vsock::connection::BUFFER;
use crate::virtio::vsock::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::virtio::vsock::*;

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
        "virtio::vsock::tests::speaking::makes_only_the_system_calls_of_a_device_thread",
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
    guest.bench.driver.interrupt_count();
    let _peer = host.connect();
    guest.listen();
    assert!(guest.bench.driver.interrupt_count() > 0);
    assert_eq!(guest.bench.driver.vrings.interrupt.status(), 1);
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
