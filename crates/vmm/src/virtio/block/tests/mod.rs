//! Requests of a driver, well-formed and malformed, on real files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use model::microvm::TokenBucket;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::virtio::testing::{Buffer, DATA, Driver, MIB, NEXT, WRITE, filtered};

mod random;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x1000;
const BUFFER: u64 = DATA + 0x2000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A file where byte N is a function of N and `seed`.
fn file(length: u64, seed: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(length, seed)).unwrap();
    file
}

fn pattern(length: u64, seed: u64) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) + at / 257 + seed * 101) as u8 | 1).collect()
}

fn contents(file: &File) -> Vec<u8> {
    let mut file = file.try_clone().unwrap();
    let mut data = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut data).unwrap();
    data
}

fn disk(parts: &[&File], read_only: bool) -> Block {
    let parts = parts.iter().map(|file| file.try_clone().unwrap()).collect();
    Block::new(parts, read_only, None, *b"0123456789abcdefghij").unwrap()
}

fn header(driver: &Driver, kind: u32, sector: u64) {
    driver.write(HEADER, &kind.to_le_bytes());
    driver.write(HEADER + 4, &[0; 4]);
    driver.write(HEADER + 8, &sector.to_le_bytes());
    driver.write(STATUS, &[0xee]);
}

/// A request with the usual layout: status and written length.
fn request(driver: &mut Driver, block: &mut Block, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    header(driver, kind, sector);
    let mut chain = vec![(HEADER, 16, false)];
    chain.extend_from_slice(data);
    chain.push((STATUS, 1, true));
    let written = driver.request(block, 0, &chain).unwrap();
    (driver.read(STATUS, 1)[0], written)
}

#[test]
fn reads() {
    let file = file(8192, 1);
    let mut block = disk(&[&file], true);
    let mut driver = Driver::start(&mut block, 0);
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 3, &[(BUFFER, 1024, true)]), (OK, 1025));
    assert_eq!(driver.read(BUFFER, 1024), pattern(8192, 1)[1536..2560]);
    assert_eq!(driver.interrupts(), (true, false));
}

#[test]
fn reads_into_many_buffers_of_odd_lengths() {
    let file = file(8192, 1);
    let mut block = disk(&[&file], true);
    let mut driver = Driver::start(&mut block, 0);
    let data = [(BUFFER, 1, true), (2 * MIB, 510, true), (BUFFER + 0x800, 513, true)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &data), (OK, 1025));
    let expected = pattern(8192, 1);
    assert_eq!(driver.read(BUFFER, 1), expected[..1]);
    assert_eq!(driver.read(2 * MIB, 510), expected[1..511]);
    assert_eq!(driver.read(BUFFER + 0x800, 513), expected[511..1024]);
}

#[test]
fn parts_begin_at_multiples_of_4_kib_and_gaps_read_as_zeros() {
    let files = [file(5000, 1), file(0, 2), file(100, 3), file(4096, 4)];
    let mut block = disk(&files.each_ref(), true);
    assert_eq!(block.capacity(), (8192 + 4096 + 4096) / 512);
    let mut driver = Driver::start(&mut block, 0);
    driver.write(BUFFER, &[0xaa; 16384]);
    let whole = [(BUFFER, 10_000, true), (BUFFER + 10_000, 6384, true)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &whole), (OK, 16385));
    let mut expected = pattern(5000, 1);
    expected.resize(8192, 0);
    expected.extend(pattern(100, 3));
    expected.resize(12288, 0);
    expected.extend(pattern(4096, 4));
    assert_eq!(driver.read(BUFFER, 16384), expected);
    // From the middle of a gap.
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 15, &[(BUFFER, 1024, true)]), (OK, 1025));
    assert_eq!(driver.read(BUFFER, 1024), expected[15 * 512..17 * 512]);
}

#[test]
fn writes_and_flushes() {
    let files = [file(4096, 1), file(8192, 2)];
    let mut block = disk(&files.each_ref(), false);
    let mut driver = Driver::start(&mut block, 0);
    let data = pattern(2048, 9);
    driver.write(BUFFER, &data);
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_OUT, 6, &[(BUFFER, 2048, false)]), (OK, 1));
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let (mut first, mut second) = (pattern(4096, 1), pattern(8192, 2));
    first[3072..].copy_from_slice(&data[..1024]);
    second[..1024].copy_from_slice(&data[1024..]);
    assert_eq!((contents(&files[0]), contents(&files[1])), (first, second));
}

#[test]
fn any_layout_of_header_data_and_status_is_the_same_request() {
    let file = file(4096, 1);
    let mut block = disk(&[&file], false);
    let mut driver = Driver::start(&mut block, 0);
    // Header in two, its second half in one buffer with the data.
    let data = pattern(512, 5);
    header(&driver, VIRTIO_BLK_T_OUT, 1);
    driver.write(HEADER + 16, &data);
    let chain = [(HEADER, 7, false), (HEADER + 7, 9 + 512, false), (STATUS, 1, true)];
    assert_eq!(driver.request(&mut block, 0, &chain).unwrap(), 1);
    assert_eq!(driver.read(STATUS, 1), [OK]);
    assert_eq!(contents(&file)[512..1024], data);
    // Status in one buffer with the data.
    header(&driver, VIRTIO_BLK_T_IN, 1);
    let chain = [(HEADER, 16, false), (BUFFER, 513, true)];
    assert_eq!(driver.request(&mut block, 0, &chain).unwrap(), 513);
    assert_eq!(driver.read(BUFFER, 512), data);
    assert_eq!(driver.read(BUFFER + 512, 1), [OK]);
}

#[test]
fn tells_its_id() {
    let mut block = disk(&[], true);
    let mut driver = Driver::start(&mut block, 0);
    let data = [(BUFFER, 8, true), (BUFFER + 8, 12, true)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_GET_ID, 0, &data), (OK, 21));
    assert_eq!(driver.read(BUFFER, 20), b"0123456789abcdefghij");
    for length in [19, 21] {
        let data = [(BUFFER, length, true)];
        assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_GET_ID, 0, &data).0, IOERR);
    }
}

/// Sector, sectors, flags.
type Range = (u64, u32, u32);

/// A list of ranges in memory.
fn ranges(driver: &Driver, ranges: &[Range]) -> [Buffer; 1] {
    for (number, (sector, sectors, flags)) in (0..).zip(ranges) {
        driver.write(BUFFER + number * 16, &sector.to_le_bytes());
        driver.write(BUFFER + number * 16 + 8, &sectors.to_le_bytes());
        driver.write(BUFFER + number * 16 + 12, &flags.to_le_bytes());
    }
    [(BUFFER, ranges.len() as u32 * 16, false)]
}

#[test]
fn writes_zeros_and_discards() {
    for (kind, flags) in
        [(VIRTIO_BLK_T_WRITE_ZEROES, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 1), (VIRTIO_BLK_T_DISCARD, 0)]
    {
        let files = [file(16384, 1), file(16384, 2)];
        let mut block = disk(&files.each_ref(), false);
        let mut driver = Driver::start(&mut block, 0);
        let data = ranges(&driver, &[(8, 32, flags), (1, 2, flags)]);
        assert_eq!(request(&mut driver, &mut block, kind, 0, &data), (OK, 1));
        let (mut first, mut second) = (pattern(16384, 1), pattern(16384, 2));
        first[512..1536].fill(0);
        first[4096..].fill(0);
        second[..4096].fill(0);
        assert_eq!((contents(&files[0]), contents(&files[1])), (first, second), "{kind} {flags}");
    }
}

#[test]
fn a_discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let file = file(MIB, 1);
    let before = file.metadata().unwrap().blocks();
    let mut block = disk(&[&file], false);
    let mut driver = Driver::start(&mut block, 0);
    let data = ranges(&driver, &[(0, 2048, 0)]);
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_DISCARD, 0, &data), (OK, 1));
    let after = file.metadata().unwrap();
    assert!(after.blocks() < before);
    assert_eq!(after.len(), MIB);
}

#[test]
fn malformed_ranges_change_nothing() {
    let file = file(16384, 1);
    let mut block = disk(&[&file], false);
    let mut driver = Driver::start(&mut block, 0);
    let cases: &[(u32, &[Range], u8)] = &[
        (VIRTIO_BLK_T_DISCARD, &[(0, 1, 0), (0, 33, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[(32, 1, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[(0, 0, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[(0, u32::MAX, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[(u64::MAX, 1, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[(u64::MAX / 512, 2, 0)], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[], IOERR),
        (VIRTIO_BLK_T_DISCARD, &[(0, 1, 1)], UNSUPP),
        (VIRTIO_BLK_T_DISCARD, &[(0, 1, 0), (0, 1, 2)], UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0), (0, 1, 4)], UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 1, 0); 33], IOERR),
    ];
    for (kind, list, status) in cases {
        let data = ranges(&driver, list);
        let data = if list.is_empty() { &[][..] } else { &data[..] };
        assert_eq!(request(&mut driver, &mut block, *kind, 0, data).0, *status, "{list:?}");
    }
    // Not a whole number of them.
    ranges(&driver, &[(0, 1, 0), (0, 1, 0)]);
    let data = [(BUFFER, 24, false)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_DISCARD, 0, &data).0, IOERR);
    assert_eq!(contents(&file), pattern(16384, 1));
}

#[test]
fn refused_requests_get_a_status() {
    let file = file(8192, 1);
    let mut block = disk(&[&file], false);
    let mut driver = Driver::start(&mut block, 0);
    let (to, from) = ((BUFFER, 512, true), (BUFFER, 512, false));
    for (kind, sector, data, status) in [
        (VIRTIO_BLK_T_IN, 16, &[to][..], IOERR),
        (VIRTIO_BLK_T_IN, 15, &[to, to], IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, &[to], IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, &[to], IOERR),
        (VIRTIO_BLK_T_IN, 0, &[], IOERR),
        (VIRTIO_BLK_T_IN, 0, &[from], IOERR),
        (VIRTIO_BLK_T_IN, 0, &[from, to], IOERR),
        (VIRTIO_BLK_T_IN, 0, &[(BUFFER, 513, true)], IOERR),
        (VIRTIO_BLK_T_OUT, 16, &[from], IOERR),
        (VIRTIO_BLK_T_OUT, 0, &[], IOERR),
        (VIRTIO_BLK_T_OUT, 0, &[to], IOERR),
        (VIRTIO_BLK_T_OUT, 0, &[from, to], IOERR),
        (VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 100, false)], IOERR),
        (VIRTIO_BLK_T_FLUSH, 0, &[to], IOERR),
        (2, 0, &[], UNSUPP),
        (14, 0, &[from], UNSUPP),
        (u32::MAX, 0, &[to], UNSUPP),
    ] {
        let outcome = request(&mut driver, &mut block, kind, sector, data);
        assert_eq!(outcome.0, status, "{kind} {sector} {data:?}");
    }
    assert_eq!(contents(&file), pattern(8192, 1));
}

#[test]
fn a_request_of_more_than_64_mib_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 30).unwrap();
    let mut block = disk(&[&file], true);
    let mut driver = Driver::start(&mut block, 0);
    let mut data = vec![(2 * MIB, MIB as u32, true); 64];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &data).0, OK);
    data.push((2 * MIB, 512, true));
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &data).0, IOERR);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let file = file(8192, 1);
    let mut block = disk(&[&file], true);
    assert_ne!(block.features() & (1 << VIRTIO_BLK_F_RO), 0);
    let mut driver = Driver::start(&mut block, 0);
    let out = [(BUFFER, 512, false)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_OUT, 0, &out).0, IOERR);
    let data = ranges(&driver, &[(0, 1, 0)]);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&mut driver, &mut block, kind, 0, &data).0, IOERR);
    }
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert_eq!(contents(&file), pattern(8192, 1));
}

#[test]
fn a_file_that_became_shorter_is_an_io_error() {
    let file = file(8192, 1);
    let mut block = disk(&[&file], true);
    file.set_len(4096 + 100).unwrap();
    let mut driver = Driver::start(&mut block, 0);
    let data = [(BUFFER, 8192, true)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &data).0, IOERR);
}

#[test]
fn a_full_host_is_an_io_error() {
    let mut block = disk(&[&file(4096, 1)], false);
    // A file that fails with ENOSPC wherever it is written; it has no size, so it goes in here.
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    block.disk.replace_file(full);
    let mut driver = Driver::start(&mut block, 0);
    let data = [(BUFFER, 512, false)];
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_OUT, 0, &data).0, IOERR);
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_GET_ID, 0, &[(BUFFER, 20, true)]).0, OK);
}

#[test]
fn without_flushes_a_write_is_stable_when_done() {
    let file = file(4096, 1);
    let mut block = disk(&[&file], false);
    let mut driver = Driver::start(&mut block, 1 << VIRTIO_BLK_F_FLUSH);
    driver.write(BUFFER, &[7; 512]);
    assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_OUT, 0, &[(BUFFER, 512, false)]), (OK, 1));
    assert_eq!(contents(&file)[..512], [7; 512]);
}

#[test]
fn malformed_chains_are_errors_of_the_device() {
    let file = file(8192, 1);
    let cases: &[&[Buffer]] = &[
        // No status, no header, a header that is too short.
        &[(HEADER, 16, false)],
        &[(HEADER, 16, false), (BUFFER, 512, false)],
        &[(STATUS, 1, true)],
        &[(HEADER, 15, false), (STATUS, 1, true)],
        // No length.
        &[(HEADER, 0, false), (HEADER, 16, false), (STATUS, 1, true)],
        &[(HEADER, 16, false), (BUFFER, 0, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (STATUS, 0, true)],
        // Outside of the memory: in the hole, across its edge, behind the end, around the end.
        &[(MIB, 16, false), (STATUS, 1, true)],
        &[(HEADER, 16, false), (MIB - 256, 512, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (3 * MIB, 512, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (u64::MAX - 255, 512, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (BUFFER, u32::MAX, true), (STATUS, 1, true)],
        &[(HEADER, 16, false), (BUFFER, 512, true), (MIB, 1, true)],
        // Readable after writable.
        &[(HEADER, 16, false), (STATUS, 1, true), (BUFFER, 512, false)],
        &[(STATUS, 1, true), (HEADER, 16, false)],
    ];
    for chain in cases {
        let mut block = disk(&[&file], false);
        let mut driver = Driver::start(&mut block, 0);
        header(&driver, VIRTIO_BLK_T_OUT, 0);
        driver.submit(0, chain);
        let outcome = block.notified(0, &mut driver.vrings);
        assert!(
            matches!(outcome, Err(DeviceError::Request(_) | DeviceError::Memory(_))),
            "{chain:?}: {outcome:?}"
        );
        assert_eq!(driver.used(0), []);
    }
    assert_eq!(contents(&file), pattern(8192, 1));
}

#[test]
fn malformed_rings_are_errors_of_the_device() {
    let file = file(8192, 1);
    const INDIRECT: u16 = 4;
    let break_it: [fn(&mut Driver); 7] = [
        // A loop.
        |driver| {
            driver.rings[0].describe(0, (HEADER, 16), NEXT, 1);
            driver.rings[0].describe(1, (BUFFER, 512), NEXT | WRITE, 1);
            driver.rings[0].publish(0);
        },
        // A successor, and a head, that do not exist.
        |driver| {
            driver.rings[0].describe(0, (HEADER, 16), NEXT, 256);
            driver.rings[0].publish(0);
        },
        |driver| driver.rings[0].publish(256),
        // An indirect table within an indirect table.
        |driver| {
            driver.rings[0].describe(0, (BUFFER, 32), INDIRECT, 0);
            driver.write(BUFFER, &BUFFER.to_le_bytes());
            driver.write(BUFFER + 8, &[32, 0, 0, 0, INDIRECT as u8, 0, 0, 0]);
            driver.rings[0].publish(0);
        },
        // An indirect table outside of the memory.
        |driver| {
            driver.rings[0].describe(0, (MIB, 32), INDIRECT, 0);
            driver.rings[0].publish(0);
        },
        // An indirect table that no driver needs.
        |driver| {
            driver.rings[0].describe(0, (BUFFER, 16 * 2048), INDIRECT, 0);
            for index in 0..2048u16 {
                let at = BUFFER + u64::from(index) * 16;
                driver.write(at, &HEADER.to_le_bytes());
                driver.write(at + 8, &[1, 0, 0, 0, NEXT as u8, 0]);
                driver.write(at + 14, &(index + 1).to_le_bytes());
            }
            driver.rings[0].publish(0);
        },
        // More requests than the ring has room for.
        |driver| {
            driver.submit(0, &[(HEADER, 16, false), (STATUS, 1, true)]);
            let index = driver.rings[0].available_ring() + 2;
            driver.write(index, &300u16.to_le_bytes());
        },
    ];
    for (case, break_it) in break_it.iter().enumerate() {
        let mut block = disk(&[&file], false);
        let mut driver = Driver::start(&mut block, 0);
        header(&driver, VIRTIO_BLK_T_IN, 0);
        break_it(&mut driver);
        assert!(block.notified(0, &mut driver.vrings).is_err(), "{case}");
    }
}

#[test]
fn what_came_before_a_malformed_chain_is_answered() {
    let mut block = disk(&[&file(8192, 1)], true);
    let mut driver = Driver::start(&mut block, 0);
    header(&driver, VIRTIO_BLK_T_IN, 0);
    let head = driver.submit(0, &[(HEADER, 16, false), (BUFFER, 512, true), (STATUS, 1, true)]);
    driver.submit(0, &[(HEADER, 16, false)]);
    assert!(block.notified(0, &mut driver.vrings).is_err());
    assert_eq!(driver.used(0), [(head, 513)]);
    assert_eq!(driver.interrupts(), (true, false));
}

#[test]
fn a_queue_that_was_not_set_up_is_left_alone() {
    let mut block = disk(&[], true);
    let mut driver = Driver::start(&mut block, 0);
    driver.submit(0, &[(HEADER, 16, false)]);
    use virtio_queue::QueueT;
    driver.vrings.queues[0].set_ready(false);
    block.notified(0, &mut driver.vrings).unwrap();
    assert_eq!(driver.used(0), []);
}

#[test]
fn serves_around_the_ring_many_times() {
    let file = file(65536, 3);
    let mut block = disk(&[&file], true);
    for without in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let mut driver = Driver::start(&mut block, without);
        let expected = pattern(65536, 3);
        for round in 0..2000u64 {
            let sector = round % 127;
            let data = [(BUFFER, 512, true)];
            assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_IN, sector, &data), (OK, 513));
            let at = sector as usize * 512;
            assert_eq!(driver.read(BUFFER, 512), expected[at..at + 512]);
        }
    }
}

#[test]
fn the_driver_is_interrupted_as_it_wishes() {
    let mut block = disk(&[&file(8192, 1)], true);
    let mut driver = Driver::start(&mut block, 0);
    // used_event: only after the second used buffer.
    let used_event = driver.rings[0].available_ring() + 4 + 512;
    driver.write(used_event, &1u16.to_le_bytes());
    request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, true)]);
    assert_eq!(driver.interrupts(), (false, false));
    request(&mut driver, &mut block, VIRTIO_BLK_T_IN, 0, &[(BUFFER, 512, true)]);
    assert_eq!(driver.interrupts(), (true, false));
}

#[test]
fn what_is_over_the_limit_waits_for_the_timer() {
    let limit = RateLimit { bytes: Some(TokenBucket { rate: 100_000, burst: 1024 }), operations: None };
    let file = file(8192, 1);
    let mut block = Block::new(vec![file], true, Some(limit), [0; 20]).unwrap();
    let mut driver = Driver::start(&mut block, 0);
    header(&driver, VIRTIO_BLK_T_IN, 0);
    let chain = [(HEADER, 16, false), (BUFFER, 1024, true), (STATUS, 1, true)];
    let (first, second) = (driver.submit(0, &chain), driver.submit(0, &chain));
    block.notified(0, &mut driver.vrings).unwrap();
    assert_eq!(driver.used(0), [(first, 1025)]);
    assert_eq!(driver.interrupts(), (true, false));
    // A notification does not help.
    let third = driver.submit(0, &chain);
    block.notified(0, &mut driver.vrings).unwrap();
    assert_eq!(driver.used(0), []);
    for head in [second, third] {
        let sources = block.sources();
        wait_until_readable(sources[0].fd);
        block.ready(sources[0].token, &mut driver.vrings).unwrap();
        assert_eq!(driver.used(0), [(head, 1025)]);
    }
}

#[allow(unsafe_code)]
fn wait_until_readable(fd: std::os::fd::RawFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    // SAFETY: the descriptor is the device's, which lives.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let deadline = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&deadline)).unwrap(), 1);
}

#[test]
fn the_configuration_space() {
    let block = disk(&[&file(8192, 1)], false);
    let mut space = [0xff; 64];
    block.read_config(0, &mut space);
    assert_eq!(space[..8], 16u64.to_le_bytes());
    assert_eq!(space[12..16], 254u32.to_le_bytes());
    assert_eq!(space[20..24], 512u32.to_le_bytes());
    assert_eq!(space[56..], [1, 0, 0, 0, 0, 0, 0, 0]);
    let mut byte = [0xff];
    block.read_config(u64::MAX, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn backends_that_cannot_be_are_refused() {
    let make = |file: File, read_only| Block::new(vec![file], read_only, None, [0; 20]).map(|_| ());
    let directory = tempfile::tempdir().unwrap();
    assert!(make(File::open(directory.path()).unwrap(), true).is_err());
    assert!(make(File::open("/dev/zero").unwrap(), true).is_err());
    // Writable: the whole of it, at any position.
    let path = directory.path().join("disk");
    std::fs::write(&path, pattern(4096, 1)).unwrap();
    assert!(make(File::open(&path).unwrap(), true).is_ok());
    assert!(make(File::open(&path).unwrap(), false).is_err());
    assert!(make(File::options().read(true).append(true).open(&path).unwrap(), false).is_err());
    assert!(make(File::options().read(true).write(true).open(&path).unwrap(), false).is_ok());
    assert!(make(file(4095, 1), true).is_ok());
    assert!(make(file(4095, 1), false).is_err());
}

#[test]
fn a_restored_machine_is_told_of_another_capacity() {
    let state = disk(&[], true).save();
    for (parts, told) in [(vec![file(8192, 1)], true), (vec![], false)] {
        let mut block = Block::new(parts, true, None, [0; 20]).unwrap();
        block.restore(&state).unwrap();
        assert_eq!(Driver::start(&mut block, 0).interrupts(), (false, told));
        // Once.
        assert_eq!(Driver::start(&mut block, 0).interrupts(), (false, false));
    }
    assert!(disk(&[], false).restore(&state).is_err());
    assert!(disk(&[], true).restore(&DeviceState::Entropy).is_err());
}

#[test]
fn makes_only_the_system_calls_of_a_device_thread() {
    let limit = RateLimit { bytes: Some(TokenBucket { rate: 1 << 20, burst: 512 }), operations: None };
    filtered(
        "virtio::block::tests::makes_only_the_system_calls_of_a_device_thread",
        move || Block::new(vec![file(8192, 1)], false, Some(limit), [0; 20]).unwrap(),
        |mut block| {
            let mut driver = Driver::start(&mut block, 0);
            let (to, from) = ((BUFFER, 512, true), (BUFFER, 512, false));
            let range = ranges(&driver, &[(8, 1, 1)]);
            assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_WRITE_ZEROES, 0, &range).0, OK);
            let range = ranges(&driver, &[(8, 8, 0)]);
            assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_WRITE_ZEROES, 0, &range).0, OK);
            assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_DISCARD, 0, &range).0, OK);
            assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
            assert_eq!(request(&mut driver, &mut block, VIRTIO_BLK_T_OUT, 0, &[from]).0, OK);
            // Over the limit: the timer is set, waited for and quieted.
            header(&driver, VIRTIO_BLK_T_IN, 0);
            driver.submit(0, &[(HEADER, 16, false), to, (STATUS, 1, true)]);
            block.notified(0, &mut driver.vrings).unwrap();
            assert_eq!(driver.used(0), []);
            wait_until_readable(block.sources()[0].fd);
            block.ready(TIMER, &mut driver.vrings).unwrap();
            assert_eq!(driver.used(0).len(), 1);
            block.reset();
        },
        || {},
    );
}
