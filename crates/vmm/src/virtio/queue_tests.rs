//! The arithmetic of rings and chains, against what the specification says in words.

use proptest::prelude::*;
use vm_memory::GuestMemoryBackend;

use super::*;
use crate::virtio::testing::{NEXT, Ring, WRITE};

const SIZE: u16 = 16;
const MEMORY: usize = 0x2_0000;
const DATA: u64 = 0x1_0000;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

/// A queue whose both ends stand at these indices.
fn queue(memory: &GuestMemory, event_idx: bool, available: u16, used: u16) -> (Ring, Queue) {
    let ring = Ring::new(memory, 0, SIZE);
    let mut queue = ring.queue();
    queue.set_event_idx(event_idx);
    queue.set_next_avail(available);
    queue.set_next_used(used);
    (ring, queue)
}

fn put(memory: &GuestMemory, at: u64, value: u16) {
    memory.write_obj(value.to_le(), GuestAddress(at)).unwrap();
}

fn bytes(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

proptest! {
    /// 2.7.7.2: "… if the used index … passed `used_event`", wherever the indices wrap around.
    #[test]
    fn an_interrupt_is_due_when_the_event_s_index_is_passed(
        before: u16,
        count in 0..=SIZE,
        event in any::<u16>(),
        near in prop::option::of(0..SIZE + 2),
    ) {
        let memory = memory();
        let (ring, queue) = queue(&memory, true, 0, before.wrapping_add(count));
        let event = near.map_or(event, |near| before.wrapping_add(near).wrapping_sub(1));
        put(&memory, ring.available_ring() + 4 + 2 * u64::from(SIZE), event);
        let passed = (0..count).any(|step| before.wrapping_add(step) == event);
        prop_assert_eq!(wants_interrupt(&queue, &memory, before).unwrap(), passed);
    }

    /// 2.7.7.1: without the feature, the flag of the available ring decides.
    #[test]
    fn without_events_the_flag_decides(before: u16, count in 0..=SIZE, flags: u16) {
        let memory = memory();
        let (ring, queue) = queue(&memory, false, 0, before.wrapping_add(count));
        put(&memory, ring.available_ring(), flags);
        let wanted = count > 0 && flags & 1 == 0;
        prop_assert_eq!(wants_interrupt(&queue, &memory, before).unwrap(), wanted);
    }

    #[test]
    fn chains_used_together_are_as_if_used_one_by_one(
        used: u16,
        chains in prop::collection::vec((0..SIZE, any::<u32>()), 0..usize::from(SIZE)),
    ) {
        let (ours, theirs) = (memory(), memory());
        let ((_, mut together), (_, mut one_by_one)) =
            (queue(&ours, false, 0, used), queue(&theirs, false, 0, used));
        // Both begin with the index in memory.
        for (queue, memory) in [(&together, &ours), (&one_by_one, &theirs)] {
            put(memory, queue.used_ring() + 2, used);
        }
        add_used_together(&mut together, &ours, chains.iter().copied()).unwrap();
        for &(head, length) in &chains {
            one_by_one.add_used(&theirs, head, length).unwrap();
        }
        prop_assert_eq!(together.next_used(), one_by_one.next_used());
        prop_assert!(bytes(&ours) == bytes(&theirs));
    }

    #[test]
    fn what_is_given_back_comes_again(
        start: u16,
        heads in prop::collection::vec(0..SIZE, 1..=usize::from(SIZE)),
        taken in 0..=usize::from(SIZE),
        back in 0..=usize::from(SIZE),
    ) {
        let memory = memory();
        let (ring, mut queue) = queue(&memory, false, start, 0);
        for (index, &head) in (0u16..).zip(&heads) {
            let slot = u64::from(start.wrapping_add(index) % SIZE);
            put(&memory, ring.available_ring() + 4 + 2 * slot, head);
        }
        put(&memory, ring.available_ring() + 2, start.wrapping_add(heads.len() as u16));
        let take = |queue: &mut Queue| next_chain(queue, &memory).unwrap().map(|chain| chain.head_index());
        let taken = taken.min(heads.len());
        let first: Vec<_> = (0..taken).filter_map(|_| take(&mut queue)).collect();
        prop_assert_eq!(&first, &heads[..taken]);
        let back = back.min(taken);
        give_back(&mut queue, back as u16);
        let rest: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
        prop_assert_eq!(&rest, &heads[taken - back..]);
    }

    /// A ring that claims more than it can hold is malformed, at any index (2.7.13.3).
    #[test]
    fn a_ring_is_never_ahead_by_more_than_its_size(start: u16, ahead: u16) {
        let memory = memory();
        let (ring, mut queue) = queue(&memory, false, start, 0);
        put(&memory, ring.available_ring() + 2, start.wrapping_add(ahead));
        match next_chain(&mut queue, &memory) {
            Ok(chain) => prop_assert_eq!((chain.is_some(), ahead <= SIZE), (ahead > 0, true)),
            Err(_) => prop_assert!(ahead > SIZE),
        }
    }

    #[test]
    fn the_driver_is_asked_to_notify_of_the_next_chain(index: u16, next: u16) {
        let memory = memory();
        let (ring, queue) = queue(&memory, true, next, 0);
        put(&memory, ring.available_ring() + 2, index);
        prop_assert_eq!(arm(&queue, &memory).unwrap(), index);
        prop_assert_eq!(ring.notify_at(), index);
    }

    /// However a request is cut into descriptors (2.7.4.1), its bytes are the same.
    #[test]
    fn buffers_are_one_stretch_of_bytes(
        lengths in prop::collection::vec(1..200_u32, 1..usize::from(SIZE)),
        first_writable in 0..=usize::from(SIZE),
        offset in 0..4000_usize,
        count in 0..4000_usize,
    ) {
        let memory = memory();
        let (mut ring, mut queue) = queue(&memory, false, 0, 0);
        let mut flat = [Vec::new(), Vec::new()];
        // Backwards in memory, with gaps.
        let mut at = MEMORY as u64;
        for (index, &length) in (0u16..).zip(&lengths) {
            at -= u64::from(length) + 3;
            let writable = usize::from(index) >= first_writable;
            let data: Vec<u8> = (0..length).map(|byte| (byte as u8) ^ (index as u8) << 4).collect();
            memory.write_slice(&data, GuestAddress(at)).unwrap();
            let more = usize::from(index) + 1 < lengths.len();
            let flags = if more { NEXT } else { 0 } | if writable { WRITE } else { 0 };
            ring.describe(index, (at, length), flags, index + 1);
            flat[usize::from(writable)].extend(data);
        }
        prop_assert!(at > DATA);
        ring.publish(0);
        let before = bytes(&memory);
        let chain = next_chain(&mut queue, &memory).unwrap().unwrap();
        let (readable, writable) = Buffers::both(&memory, chain).unwrap();
        for (buffers, flat) in [(&readable, &flat[0]), (&writable, &flat[1])] {
            prop_assert_eq!(buffers.len(), flat.len());
            let expected = flat.get(offset..).unwrap_or_default();
            let expected = &expected[..expected.len().min(count)];
            let mut read = vec![0xee; count];
            prop_assert_eq!(buffers.read_at(offset, &mut read), expected.len());
            prop_assert_eq!(&read[..expected.len()], expected);
            prop_assert!(read[expected.len()..].iter().all(|byte| *byte == 0xee));
        }
        let new = vec![0xdd; count];
        let written = writable.write_at(offset, &new);
        prop_assert_eq!(written, flat[1].len().saturating_sub(offset).min(count));
        let mut read = vec![0; flat[1].len()];
        writable.read_at(0, &mut read);
        for (place, byte) in read.iter().enumerate() {
            let is_new = (offset..offset + written).contains(&place);
            prop_assert_eq!(*byte, if is_new { 0xdd } else { flat[1][place] });
        }
        // Nothing else of the memory has changed.
        let changed = before.iter().zip(bytes(&memory)).filter(|(old, new)| **old != *new).count();
        prop_assert!(changed <= written);
    }
}

#[test]
fn rings_at_the_end_of_the_address_space_are_errors() {
    let memory = memory();
    let (_, mut queue) = queue(&memory, true, 0, 0);
    let last = Some(u32::MAX);
    queue.set_used_ring_address(Some(0xffff_fffc), last);
    queue.set_avail_ring_address(Some(0xffff_fffe), last);
    assert_eq!(memory.num_regions(), 1);
    assert!(add_used_together(&mut queue, &memory, [(0, 0)]).is_err());
    assert!(arm(&queue, &memory).is_err());
    queue.set_next_used(1);
    assert!(wants_interrupt(&queue, &memory, 0).is_err());
    assert!(next_chain(&mut queue, &memory).is_err());
}
