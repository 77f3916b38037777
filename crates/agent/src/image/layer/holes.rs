//! Zeros in a file's data, which are left out of the file as holes: they read the same, and need neither disk nor page
//! cache. Not written at all, they also do not cost the copy and the fresh pages that make up most of writing a layer.

/// What a file system allots at a time, in bytes; smaller ones only find fewer holes.
const BLOCK: usize = 4096;
/// The shortest run of zeros worth a hole of its own: below it, another extent and another write cost more.
const HOLE_MIN: usize = 8 * BLOCK;

/// What to do with the first bytes of some data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Write this many.
    Data(usize),
    /// Leave out this many, all of them zeros.
    Hole(usize),
}

/// The first run of `data`, which belongs at `offset` of its file. As long as `data` is not empty, nor is the run.
pub(super) fn first_run(data: &[u8], offset: u64) -> Run {
    // Up to the first whole block.
    let head = ((BLOCK as u64 - offset % BLOCK as u64) % BLOCK as u64) as usize;
    let mut zeros = 0;
    let mut end = head.min(data.len());
    for block in data[end..].chunks_exact(BLOCK) {
        if is_zero(block) {
            zeros += BLOCK;
        } else if zeros >= HOLE_MIN {
            break;
        } else {
            zeros = 0;
        }
        end += BLOCK;
        if zeros == HOLE_MIN && end > HOLE_MIN {
            return Run::Data(end - HOLE_MIN);
        }
    }
    if zeros >= HOLE_MIN { Run::Hole(end) } else { Run::Data(data.len()) }
}

fn is_zero(block: &[u8]) -> bool {
    // By lines, so that what is no zero is seen at once, and each line is compared at a stroke.
    block.chunks(64).all(|line| line.iter().fold(0, |seen, byte| seen | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_of_whole_zero_blocks_are_holes() {
        let data = |parts: &[(u8, usize)]| -> Vec<u8> {
            parts.iter().flat_map(|(byte, length)| std::iter::repeat_n(*byte, *length)).collect()
        };
        let long = HOLE_MIN + BLOCK;
        for (parts, offset, expected) in [
            (vec![(1, 10)], 0, Run::Data(10)),
            (vec![(0, 10)], 0, Run::Data(10)),
            (vec![(0, HOLE_MIN - BLOCK)], 0, Run::Data(HOLE_MIN - BLOCK)),
            (vec![(0, HOLE_MIN)], 0, Run::Hole(HOLE_MIN)),
            (vec![(0, long), (0, 5)], 0, Run::Hole(long)),
            (vec![(0, long), (1, BLOCK)], 8192, Run::Hole(long)),
            (vec![(1, BLOCK), (0, long)], 0, Run::Data(BLOCK)),
            (vec![(1, 1), (0, BLOCK - 1), (0, long), (2, 1)], 0, Run::Data(BLOCK)),
            // Off the blocks: the part before the first whole one is written.
            (vec![(0, long)], 1, Run::Data(BLOCK - 1)),
            (vec![(0, HOLE_MIN)], 1, Run::Data(HOLE_MIN)),
            (vec![(0, 10)], 4090, Run::Data(10)),
            // Short runs do not add up.
            (
                vec![(0, HOLE_MIN - BLOCK), (1, BLOCK), (0, HOLE_MIN - BLOCK)],
                0,
                Run::Data(2 * HOLE_MIN - BLOCK),
            ),
        ] {
            assert_eq!(first_run(&data(&parts), offset), expected, "{parts:?} at {offset}");
        }
    }

    #[test]
    fn runs_put_together_are_the_data() {
        let mut data = vec![0; 40 * BLOCK];
        for (index, byte) in [(7 * BLOCK, 1), (20 * BLOCK + 17, 2), (39 * BLOCK, 3)] {
            data[index] = byte;
        }
        for offset in [0_u64, 1, 511, 512, 4095] {
            let mut rebuilt = vec![0; data.len()];
            let (mut position, mut holes) = (0, 0);
            while position < data.len() {
                match first_run(&data[position..], offset + position as u64) {
                    Run::Data(length) => {
                        assert!(length > 0);
                        rebuilt[position..position + length]
                            .copy_from_slice(&data[position..position + length]);
                        position += length;
                    }
                    Run::Hole(length) => {
                        assert!(
                            length >= HOLE_MIN && (offset + position as u64).is_multiple_of(BLOCK as u64)
                        );
                        holes += length;
                        position += length;
                    }
                }
            }
            assert_eq!(position, data.len());
            assert!(holes >= 20 * BLOCK, "{holes}");
            assert!(rebuilt == data);
        }
    }
}
