//! Waiting for many descriptors at once, by number of what they belong to.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Listener,
    Connection,
    Signals,
    /// An output of a container: the container's index in the task and the output's in its run.
    Output {
        container: usize,
        output: usize,
    },
}

impl Source {
    fn encode(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Connection => 1,
            Self::Signals => 2,
            Self::Output { container, output } => 16 + (container as u64) * 2 + (output as u64),
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            0 => Self::Listener,
            1 => Self::Connection,
            2 => Self::Signals,
            other => {
                let number = usize::try_from(other.saturating_sub(16)).unwrap_or(usize::MAX);
                Self::Output { container: number / 2, output: number % 2 }
            }
        }
    }
}

/// An epoll instance.
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Waits for input on a descriptor; closing it ends that.
    pub fn add(&self, descriptor: impl AsFd, source: Source) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, descriptor, EventData::new_u64(source.encode()), EventFlags::IN)
    }

    /// Waits for room for output, too, or no longer.
    pub fn set_writing(
        &self,
        descriptor: impl AsFd,
        source: Source,
        writing: bool,
    ) -> rustix::io::Result<()> {
        let flags = if writing { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        epoll::modify(&self.epoll, descriptor, EventData::new_u64(source.encode()), flags)
    }

    pub fn remove(&self, descriptor: impl AsFd) -> rustix::io::Result<()> {
        epoll::delete(&self.epoll, descriptor)
    }

    /// The sources that have something, after at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> rustix::io::Result<Vec<Source>> {
        let mut events = [const { Event { flags: EventFlags::empty(), data: EventData::new_u64(0) } }; 32];
        // Rounded up: a deadline that is not quite reached would be waited for again and again.
        let timeout = timeout.map(|timeout| timeout + Duration::from_micros(100));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
        Ok(events[..count].iter().map(|event| Source::decode(event.data.u64())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_kernel() {
        for source in [
            Source::Listener,
            Source::Connection,
            Source::Signals,
            Source::Output { container: 0, output: 0 },
            Source::Output { container: 9, output: 1 },
        ] {
            assert_eq!(Source::decode(source.encode()), source);
        }
    }
}
