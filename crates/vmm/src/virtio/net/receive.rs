//! From the tap to the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use virtio_queue::{Queue, QueueT};

use super::tap::Tap;
use super::{HEADER, MAX_FRAME, header};
use crate::GuestMemory;
use crate::rate_limiter::RateLimiter;
use crate::virtio::buffers::{Buffers, MAX_PIECES, Vectors};
use crate::virtio::{DeviceError, queue};

/// The most frames taken in one go.
const BATCH: usize = 64;

/// What came of an attempt to pass frames on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There may be more.
    More,
    /// Something has to happen first, and will be heard of: the tap, the guest, or the limit.
    Waits,
    /// The tap is gone.
    Lost,
}

/// A frame that was read and cannot be passed on yet: the guest has too few buffers, or its rate
/// limit does not allow it.
struct Held {
    len: usize,
    /// Its tokens were taken.
    paid: bool,
}

pub(super) struct Receiver {
    /// The tap may have a frame (edge-triggered).
    pub(super) readable: bool,
    held: Option<Held>,
    /// Where the held frame is. Empty until the first one.
    frame: Vec<u8>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self { readable: true, held: None, frame: Vec::new() }
    }

    /// Passes on what has come. Interrupts are the caller's.
    pub(super) fn advance(
        &mut self,
        tap: &Tap,
        limit: &mut RateLimiter,
        queue: &mut Queue,
        memory: &GuestMemory,
        features: u64,
    ) -> Result<Progress, DeviceError> {
        let mut pass = Pass { tap, limit, queue, features, chains: Chains::new(memory, features) };
        let mut progress = Progress::More;
        for _ in 0..BATCH {
            progress = self.pass_frame(&mut pass)?;
            if progress != Progress::More {
                break;
            }
        }
        pass.chains.give_back(pass.queue);
        Ok(progress)
    }

    fn pass_frame(&mut self, pass: &mut Pass<'_, '_>) -> Result<Progress, DeviceError> {
        if pass.limit.is_blocked() || self.held.is_none() && !self.readable {
            return Ok(Progress::Waits);
        }
        pass.chains.gather(pass.queue)?;
        match &self.held {
            Some(_) => self.pass_held(pass),
            None if pass.chains.is_empty() => pass.await_buffers(),
            None if pass.chains.capacity >= MAX_FRAME => self.pass_directly(pass),
            None => Ok(self.hold(pass)),
        }
    }

    /// Reads a frame into the guest's buffers, where there is room for any.
    fn pass_directly(&mut self, pass: &mut Pass<'_, '_>) -> Result<Progress, DeviceError> {
        // A frame that is too long shows by reaching this.
        let mut spill = [0; 1];
        let mut vectors = Vectors::new();
        for chain in &pass.chains.chains {
            vectors.push(chain, 0..chain.len());
        }
        vectors.push_own(&mut spill);
        let len = match vectors.read(pass.tap.as_fd()) {
            Ok(len) => len,
            Err(error) => return Ok(self.read_failed(&error)),
        };
        if !(HEADER..=MAX_FRAME).contains(&len) || len > pass.chains.capacity {
            return Ok(Progress::More);
        }
        // The kernel's `len` is at most what the vectors hold.
        if !pass.limit.take(len as u64)? {
            self.frame.resize(MAX_FRAME + 1, 0);
            pass.chains.read(&mut self.frame[..len]);
            self.held = Some(Held { len, paid: false });
            return Ok(Progress::Waits);
        }
        let mut kind = [0; 1];
        pass.chains.first_bytes(header::GSO_TYPE, &mut kind);
        if header::is_for_guest(kind[0], pass.features) {
            pass.finish(len)?;
        }
        Ok(Progress::More)
    }

    /// Reads a frame that may not fit into the guest's buffers.
    fn hold(&mut self, pass: &Pass<'_, '_>) -> Progress {
        self.frame.resize(MAX_FRAME + 1, 0);
        let mut vectors = Vectors::new();
        vectors.push_own(&mut self.frame);
        match vectors.read(pass.tap.as_fd()) {
            Ok(len) => {
                if (HEADER..=MAX_FRAME).contains(&len)
                    && header::is_for_guest(self.frame[header::GSO_TYPE], pass.features)
                {
                    self.held = Some(Held { len, paid: false });
                }
                Progress::More
            }
            Err(error) => self.read_failed(&error),
        }
    }

    fn pass_held(&mut self, pass: &mut Pass<'_, '_>) -> Result<Progress, DeviceError> {
        let Some(held) = &mut self.held else { return Ok(Progress::More) };
        held.paid = held.paid || pass.limit.take(held.len as u64)?;
        if !held.paid {
            return Ok(Progress::Waits);
        }
        if held.len <= pass.chains.capacity {
            pass.chains.write(&self.frame[..held.len]);
            pass.finish(held.len)?;
        } else if !pass.chains.are_all(pass.queue) {
            return pass.await_buffers();
        }
        // Passed on, or too long for all buffers together.
        self.held = None;
        Ok(Progress::More)
    }

    fn read_failed(&mut self, error: &io::Error) -> Progress {
        self.readable = false;
        if error.kind() == io::ErrorKind::WouldBlock { Progress::Waits } else { Progress::Lost }
    }
}

/// What one call of [`Receiver::advance`] works with.
struct Pass<'a, 'm> {
    tap: &'a Tap,
    limit: &'a mut RateLimiter,
    queue: &'a mut Queue,
    features: u64,
    chains: Chains<'m>,
}

impl Pass<'_, '_> {
    /// Completes the header of a frame that lies in the gathered chains, and hands them over.
    fn finish(&mut self, len: usize) -> Result<(), DeviceError> {
        let Self { queue, features, chains, .. } = self;
        let mut rest = len;
        let mut used = Vec::new();
        let mut count: u16 = 0;
        for chain in &chains.chains {
            let part = rest.min(chain.len());
            // At most `MAX_FRAME`.
            used.push((chain.head(), part as u32));
            count += 1;
            rest -= part;
            if rest == 0 {
                break;
            }
        }
        if let Some(first) = chains.chains.front() {
            // The kernel knows nothing of this field (without VIRTIO_NET_F_MRG_RXBUF: 1).
            first.write_at(header::BUFFERS, &count.to_le_bytes());
            if *features & (1 << VIRTIO_NET_F_GUEST_CSUM) == 0 {
                first.write_at(header::FLAGS, &[0]);
            }
        }
        for _ in 0..count {
            chains.take_first();
        }
        queue::add_used_together(queue, chains.memory, used)
    }

    /// Asks the guest to tell of more buffers than there were.
    fn await_buffers(&mut self) -> Result<Progress, DeviceError> {
        let seen = self.queue.next_avail();
        let index = queue::arm(self.queue, self.chains.memory)?;
        Ok(if index == seen { Progress::Waits } else { Progress::More })
    }
}

/// The chains that the next frames go to: as many as the longest frame may need, if the guest has
/// made so many available. Those not used are given back in the end.
struct Chains<'m> {
    memory: &'m GuestMemory,
    chains: VecDeque<Buffers<'m>>,
    mergeable: bool,
    /// In bytes.
    capacity: usize,
    pieces: usize,
    /// One system call can name no more.
    crowded: bool,
}

impl<'m> Chains<'m> {
    fn new(memory: &'m GuestMemory, features: u64) -> Self {
        Self {
            memory,
            chains: VecDeque::new(),
            mergeable: features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
            capacity: 0,
            pieces: 0,
            crowded: false,
        }
    }

    fn gather(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        self.crowded = false;
        while self.chains.is_empty() || self.mergeable && self.capacity < MAX_FRAME {
            let Some(chain) = queue::next_chain(queue, self.memory)? else { break };
            let buffers = Buffers::writable(self.memory, chain)?;
            if buffers.len() < HEADER {
                return Err(DeviceError::Request("a receive buffer has no room for a header"));
            }
            if self.pieces + buffers.pieces().len() > MAX_PIECES {
                queue::give_back(queue, 1);
                self.crowded = true;
                break;
            }
            self.pieces += buffers.pieces().len();
            self.capacity += buffers.len();
            self.chains.push_back(buffers);
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether there will never be more for one frame.
    fn are_all(&self, queue: &Queue) -> bool {
        !self.chains.is_empty()
            && (!self.mergeable || self.crowded || self.chains.len() == usize::from(queue.size()))
    }

    fn take_first(&mut self) {
        if let Some(first) = self.chains.pop_front() {
            self.capacity -= first.len();
            self.pieces -= first.pieces().len();
        }
    }

    fn give_back(&mut self, queue: &mut Queue) {
        // At most the queue's size, which is 16 bits wide.
        queue::give_back(queue, self.chains.len() as u16);
        self.chains.clear();
    }

    fn first_bytes(&self, offset: usize, bytes: &mut [u8]) {
        if let Some(first) = self.chains.front() {
            first.read_at(offset, bytes);
        }
    }

    fn read(&self, frame: &mut [u8]) {
        let mut done = 0;
        for chain in &self.chains {
            done += chain.read_at(0, &mut frame[done..]);
        }
    }

    fn write(&self, frame: &[u8]) {
        let mut done = 0;
        for chain in &self.chains {
            done += chain.write_at(0, &frame[done..]);
        }
    }
}
