//! What a balloon does to memory: anonymous as after boot, and a snapshot's as after a restore.

use std::io::Write;

use proptest::prelude::*;
use vm_memory::{FileOffset, GuestAddress, GuestRegionCollection, GuestRegionMmap, MmapRegion};

use super::*;
use crate::virtio::testing::filtered;
use crate::virtio::testing::{Buffer, DATA, Driver, MIB};

const PAGE: u64 = 4096;
const LIST: u64 = DATA;
/// Memory that belongs to no test's lists.
const PAGES: u64 = 2 * MIB;
const REPORT: [usize; 3] = [2, 3, 4];

fn start() -> (Balloon, Driver) {
    let mut balloon = Balloon::new();
    let driver = Driver::start(&mut balloon, 0);
    driver.write(PAGES, &vec![0xaa; MIB as usize]);
    (balloon, driver)
}

fn list(driver: &Driver, pages: &[u32]) -> [Buffer; 1] {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.write(LIST, &bytes);
    [(LIST, bytes.len() as u32, false)]
}

/// Which pages of the second megabyte have lost their contents.
fn released(driver: &Driver) -> Vec<u64> {
    let memory = driver.read(PAGES, MIB as usize);
    let (kept, empty) = ([0xaa; PAGE as usize], [0; PAGE as usize]);
    (0..)
        .zip(memory.chunks(PAGE as usize))
        .filter_map(|(page, bytes)| {
            assert!(bytes == kept || bytes == empty, "page {page} is half empty");
            (bytes == empty).then_some(page)
        })
        .collect()
}

#[test]
fn inflating_gives_pages_back_and_deflating_takes_them() {
    let (mut balloon, mut driver) = start();
    let buffers = list(&driver, &[520, 512, 514, 513, 513, 767]);
    assert_eq!(driver.request(&mut balloon, INFLATE, &buffers).unwrap(), 0);
    assert_eq!(released(&driver), [0, 1, 2, 8, 255]);
    assert_eq!(driver.interrupts(), (true, false));
    assert_eq!(driver.request(&mut balloon, DEFLATE, &buffers).unwrap(), 0);
    driver.write(PAGES, &[0xaa; 4096]);
    assert_eq!(released(&driver), [1, 2, 8, 255]);
}

#[test]
fn exactly_the_whole_pages_of_a_report_are_given_back() {
    for queue in REPORT {
        let (mut balloon, mut driver) = start();
        let buffers = [
            (PAGES + PAGE, 2 * 4096, true),
            (PAGES + 8 * PAGE + 1, 3 * 4096, true),
            (PAGES + 20 * PAGE - 1, 4096 + 1, true),
            (PAGES + 30 * PAGE + 5, 4000, true),
            (PAGES + MIB - PAGE, 4096, true),
        ];
        assert_eq!(driver.request(&mut balloon, queue, &buffers).unwrap(), 0);
        assert_eq!(released(&driver), [1, 2, 9, 10, 20, 255]);
    }
}

#[test]
fn memory_of_a_snapshot_reads_as_the_snapshot_again() {
    let mut snapshot = tempfile::tempfile().unwrap();
    snapshot.write_all(&vec![0x55; MIB as usize]).unwrap();
    let mapping = MmapRegion::build(
        Some(FileOffset::new(snapshot.try_clone().unwrap(), 0)),
        MIB as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_NORESERVE,
    )
    .unwrap();
    let boot = GuestRegionMmap::new(MmapRegion::new(MIB as usize).unwrap(), GuestAddress(0)).unwrap();
    let restored = GuestRegionMmap::new(mapping, GuestAddress(PAGES)).unwrap();
    let memory = GuestRegionCollection::from_regions(vec![boot, restored]).unwrap();
    let mut balloon = Balloon::new();
    let mut driver = Driver::start_on(memory, &mut balloon, 0);
    driver.write(PAGES, &vec![0xaa; MIB as usize]);
    driver.request(&mut balloon, 4, &[(PAGES + PAGE, 4096, true)]).unwrap();
    let mut expected = vec![0xaa; MIB as usize];
    expected[4096..8192].fill(0x55);
    assert_eq!(driver.read(PAGES, MIB as usize), expected);
    // And the file is as it was.
    assert_eq!(snapshot.metadata().unwrap().len(), MIB);
    driver.write(PAGES + PAGE, &[0xbb; 4096]);
    let mut page = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&snapshot, &mut page, PAGE).unwrap();
    assert_eq!(page, [0x55; 4096]);
}

#[test]
fn malformed_requests_are_errors_of_the_device_and_release_nothing() {
    let cases: &[(usize, &[Buffer], &[u32])] = &[
        (INFLATE, &[(LIST, 4, true)], &[512]),
        (INFLATE, &[(LIST, 3, false)], &[512]),
        (INFLATE, &[(LIST, 64 * 1024 + 4, false)], &[512]),
        (INFLATE, &[(LIST, 4, false)], &[256]),
        (INFLATE, &[(LIST, 4, false)], &[768]),
        (INFLATE, &[(LIST, 4, false)], &[u32::MAX]),
        (INFLATE, &[(LIST, 8, false)], &[768, 767]),
        (DEFLATE, &[(LIST, 4, true)], &[512]),
        (4, &[(PAGES, 4096, false)], &[]),
        (4, &[(PAGES, 4096, true), (MIB, 4096, true)], &[]),
        (4, &[(PAGES + MIB - PAGE, 8192, true)], &[]),
        (4, &[(PAGES, 0, true)], &[]),
    ];
    for (queue, buffers, pages) in cases {
        let (mut balloon, mut driver) = start();
        list(&driver, pages);
        driver.submit(*queue, buffers);
        assert!(balloon.notified(*queue, &mut driver.vrings).is_err(), "{queue} {buffers:?}");
        assert!(released(&driver).is_empty(), "{queue} {buffers:?}");
    }
}

#[test]
fn reports_need_the_feature() {
    let mut balloon = Balloon::new();
    let mut driver = Driver::start(&mut balloon, 1 << VIRTIO_BALLOON_F_REPORTING);
    driver.submit(4, &[(PAGES, 4096, true)]);
    assert!(balloon.notified(4, &mut driver.vrings).is_err());
}

#[test]
fn the_host_asks_and_the_guest_answers() {
    let mut balloon = Balloon::new();
    let control = balloon.control();
    let target = |balloon: &Balloon| {
        let mut space = [0; 8];
        balloon.read_config(0, &mut space);
        u32::from_le_bytes([space[0], space[1], space[2], space[3]])
    };
    // Before there is a driver: it is told when it is ready.
    control.set_target(3);
    let driver = Driver::start(&mut balloon, 0);
    assert_eq!(driver.interrupts(), (false, true));
    assert_eq!(target(&balloon), 3 * 256);
    control.set_target(2);
    assert_eq!(driver.interrupts(), (false, true));
    assert_eq!(target(&balloon), 2 * 256);
    balloon.write_config(4, &512u32.to_le_bytes());
    assert_eq!(control.actual(), 2);
    // The target is not the driver's, and there is nothing behind the end.
    balloon.write_config(0, &[0xff; 4]);
    balloon.write_config(8, &[0xff; 4]);
    balloon.write_config(u64::MAX, &[0xff; 4]);
    assert_eq!((target(&balloon), control.actual()), (512, 2));
    // Byte by byte.
    balloon.write_config(5, &[1]);
    assert_eq!(control.actual(), 1);
    control.set_target(u32::MAX);
    assert_eq!(target(&balloon), u32::MAX);
    driver.interrupts();
    balloon.reset();
    assert_eq!(control.actual(), 0);
    control.set_target(1);
    assert_eq!(driver.interrupts(), (false, false));
}

#[test]
fn a_restored_balloon_holds_what_it_held() {
    let mut before = Balloon::new();
    before.control().set_target(4);
    before.write_config(4, &256u32.to_le_bytes());
    let state = before.save();
    assert_eq!(state, DeviceState::Balloon(State { target: 1024, actual: 256 }));
    let mut balloon = Balloon::new();
    balloon.restore(&state).unwrap();
    assert_eq!(balloon.save(), state);
    assert_eq!(balloon.control().actual(), 1);
    assert!(balloon.restore(&DeviceState::Entropy).is_err());
}

proptest! {
    /// Whatever is reported or put in: no panic, and a page loses its contents if and only if it is
    /// wholly in one of the ranges, and the request is well-formed.
    #[test]
    fn random_requests_release_only_what_they_name(
        queue in 0..5usize,
        pages in prop::collection::vec(prop_oneof![6 => 512..768u32, 1 => any::<u32>()], 1..20),
        ranges in prop::collection::vec((PAGES..PAGES + MIB + 100, 0..20_000u32, prop::bool::weighted(0.9)), 1..6),
    ) {
        let (mut balloon, mut driver) = start();
        let buffers = if queue <= DEFLATE { list(&driver, &pages).to_vec() } else { ranges.clone() };
        driver.submit(queue, &buffers);
        let outcome = balloon.notified(queue, &mut driver.vrings);
        let named = |page: u64| match queue {
            INFLATE => pages.contains(&(page as u32 + 512)),
            DEFLATE => false,
            _ => ranges.iter().any(|&(start, len, writable)| {
                let page = PAGES + page * PAGE;
                writable && start <= page && page + PAGE <= start + u64::from(len)
            }),
        };
        let released = released(&driver);
        for &page in &released {
            prop_assert!(named(page));
        }
        if outcome.is_ok() {
            prop_assert_eq!(released.len(), (0..256).filter(|&page| named(page)).count());
        }
    }
}

#[test]
fn makes_only_the_system_calls_of_a_device_thread() {
    filtered(
        "virtio::balloon::tests::makes_only_the_system_calls_of_a_device_thread",
        start,
        |(mut balloon, mut driver)| {
            let buffers = list(&driver, &[512]);
            driver.request(&mut balloon, INFLATE, &buffers).unwrap();
            driver.request(&mut balloon, DEFLATE, &buffers).unwrap();
            driver.request(&mut balloon, 4, &[(PAGES + PAGE, 4096, true)]).unwrap();
            assert_eq!(released(&driver), [0, 1]);
            balloon.control().set_target(1);
            balloon.reset();
        },
        || {},
    );
}
