//! How many requests a second the device serves, without a guest: what it costs itself, and what the
//! host's page cache costs.
//!
//! `cargo test --release -p vmm --lib block::measure -- --ignored --nocapture`

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::*;
use crate::virtio::testing::{DATA, Driver, MIB};

#[test]
#[ignore = "a measurement"]
fn requests_a_second() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(256 * MIB).unwrap();
    let mut written = file.try_clone().unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(1), 256 * MIB), &mut written).unwrap();
    let mut block = Block::new(vec![file], false, None, [0; 20]).unwrap();
    for (name, kind, length) in [
        ("id", VIRTIO_BLK_T_GET_ID, 20),
        ("read", VIRTIO_BLK_T_IN, 4096),
        ("read", VIRTIO_BLK_T_IN, 128 * 1024),
        ("write", VIRTIO_BLK_T_OUT, 4096),
        ("write", VIRTIO_BLK_T_OUT, 128 * 1024),
    ] {
        for depth in [1, 32] {
            let mut driver = Driver::start(&mut block, 0);
            let writable = kind != VIRTIO_BLK_T_OUT;
            let mut requests = 0u64;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) {
                for place in 0..depth {
                    let header = DATA + place * 32;
                    let sector = (requests * 7919 % (255 * MIB / 4096)) * 8;
                    driver.write(header, &kind.to_le_bytes());
                    driver.write(header + 8, &sector.to_le_bytes());
                    let buffer = (2 * MIB + place * 4096, length, writable);
                    driver.submit(0, &[(header, 16, false), buffer, (header + 16, 1, true)]);
                    requests += 1;
                }
                block.notified(0, &mut driver.vrings).unwrap();
                assert_eq!(driver.used(0).len() as u64, depth);
            }
            let rate = requests as f64 / start.elapsed().as_secs_f64();
            let mib = if length > 20 { rate * f64::from(length) / MIB as f64 } else { 0.0 };
            println!("{name:5} {length:6} bytes, {depth:2} at once: {rate:9.0} requests/s, {mib:6.0} MiB/s");
        }
    }
}
