//! Requests by chance: against a model, and whatever a driver may say.

use proptest::prelude::*;

use super::*;

/// A buffer anywhere near, in and out of the memory.
fn buffer() -> impl Strategy<Value = (u64, u32, u16)> {
    let addr = prop_oneof![
        8 => DATA..DATA + 0x1_0000,
        2 => 2 * MIB..2 * MIB + 0x1_0000,
        1 => MIB - 0x800..MIB + 0x800,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => Just(512u32), 2 => Just(16u32), 2 => Just(1u32), 2 => 0..8192u32, 1 => any::<u32>()
    ];
    let flags = prop_oneof![4 => Just(NEXT), 8 => Just(NEXT | WRITE), 1 => 0..8u16];
    (addr, len, flags)
}

proptest! {
    /// Whatever a driver says: no panic; nothing changes in memory but the writable buffers and the
    /// used ring; a file keeps its size, and its contents if the disk is read-only.
    #[test]
    fn random_chains_touch_only_what_they_may(
        kind in prop_oneof![prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]), any::<u32>()],
        sector in prop_oneof![0..40u64, any::<u64>()],
        read_only in any::<bool>(),
        mut buffers in prop::collection::vec(buffer(), 0..8),
        well_formed in any::<bool>(),
        last in 0..3u16,
    ) {
        let files = [file(4096, 1), file(12288, 2)];
        let mut block = disk(&files.each_ref(), read_only);
        let mut driver = Driver::start(&mut block, 0);
        // Half of them begin with a header, go on in order and end with a status.
        if well_formed {
            buffers.sort_by_key(|(_, _, flags)| flags & WRITE);
            buffers.insert(0, (HEADER, 16, NEXT));
            buffers.push((STATUS, 1, WRITE));
        }
        let count = buffers.len() as u16;
        for (index, &(addr, len, flags)) in (0u16..).zip(&buffers) {
            let flags = if index + 1 == count && last == 0 { flags & !NEXT } else { flags };
            driver.rings[0].describe(index, (addr, len), flags, index + 1);
        }
        for at in 0..0x1_0000 / 8 {
            driver.write(DATA + at * 8, &at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        header(&driver, kind, sector);
        driver.rings[0].publish(0);
        let snapshot = |driver: &Driver| [driver.read(0, MIB as usize), driver.read(2 * MIB, MIB as usize)].concat();
        let before = snapshot(&driver);
        let _ = block.notified(0, &mut driver.vrings);
        let after = snapshot(&driver);
        let used_ring = driver.rings[0].used_ring();
        let may_change = |at: u64| {
            let addr = if at < MIB { at } else { at + MIB };
            // The used ring, and its notification fields.
            (used_ring..used_ring + 0x1000).contains(&addr)
                || buffers.iter().any(|&(start, len, flags)| {
                    flags & WRITE != 0 && addr.checked_sub(start).is_some_and(|at| at < u64::from(len))
                })
        };
        for (chunk, (before, after)) in (0u64..).zip(before.chunks(4096).zip(after.chunks(4096))) {
            if before != after {
                for (at, (before, after)) in (chunk * 4096..).zip(before.iter().zip(after)) {
                    prop_assert!(before == after || may_change(at), "{:#x}", at);
                }
            }
        }
        for (file, (length, seed)) in files.iter().zip([(4096, 1), (12288, 2)]) {
            let now = contents(file);
            prop_assert_eq!(now.len() as u64, length);
            if read_only {
                prop_assert_eq!(now, pattern(length, seed));
            }
        }
    }

    /// A disk of random parts reads as the plain array of bytes that it should be.
    #[test]
    fn random_reads_match_a_model(
        lengths in prop::collection::vec(0..20_000u64, 0..5),
        reads in prop::collection::vec((0..200u64, 1..16u32), 1..8),
    ) {
        let files: Vec<File> = (0..).zip(&lengths).map(|(seed, &length)| file(length, seed)).collect();
        let mut model = Vec::new();
        for (seed, &length) in (0..).zip(&lengths) {
            model.extend(pattern(length, seed));
            model.resize(model.len().next_multiple_of(4096), 0);
        }
        let mut block = disk(&files.iter().collect::<Vec<_>>(), true);
        prop_assert_eq!(block.capacity() as usize * 512, model.len());
        let mut driver = Driver::start(&mut block, 0);
        for (sector, sectors) in reads {
            let length = sectors * 512;
            let data = [(BUFFER, 100, true), (BUFFER + 100, length - 100, true)];
            let (status, _) = request(&mut driver, &mut block, VIRTIO_BLK_T_IN, sector, &data);
            let range = sector as usize * 512..sector as usize * 512 + length as usize;
            match model.get(range) {
                Some(expected) => {
                    prop_assert_eq!(status, OK);
                    prop_assert_eq!(&driver.read(BUFFER, length as usize), expected);
                }
                None => prop_assert_eq!(status, IOERR),
            }
        }
    }

    /// Writes, zeros and discards do to the disk what they do to an array of bytes.
    #[test]
    fn random_changes_match_a_model(
        changes in prop::collection::vec((0..3u32, 0..40u64, 1..12u32, any::<u8>()), 1..12),
    ) {
        let files = [file(8192, 1), file(8192, 2)];
        let mut model = [pattern(8192, 1), pattern(8192, 2)].concat();
        let mut block = disk(&files.each_ref(), false);
        let mut driver = Driver::start(&mut block, 0);
        for (kind, sector, sectors, byte) in changes {
            let length = sectors * 512;
            let range = sector as usize * 512..sector as usize * 512 + length as usize;
            let (kind, data, byte) = match kind {
                0 => {
                    driver.write(BUFFER, &vec![byte; length as usize]);
                    (VIRTIO_BLK_T_OUT, (BUFFER, length, false), byte)
                }
                1 => (VIRTIO_BLK_T_WRITE_ZEROES, ranges(&driver, &[(sector, sectors, 1)])[0], 0),
                _ => (VIRTIO_BLK_T_DISCARD, ranges(&driver, &[(sector, sectors, 0)])[0], 0),
            };
            let (status, _) = request(&mut driver, &mut block, kind, sector, &[data]);
            match model.get_mut(range) {
                Some(place) => {
                    prop_assert_eq!(status, OK);
                    place.fill(byte);
                }
                None => prop_assert_eq!(status, IOERR),
            }
            prop_assert_eq!(&[contents(&files[0]), contents(&files[1])].concat(), &model);
        }
    }
}
