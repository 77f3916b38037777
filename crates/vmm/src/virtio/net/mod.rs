//! Network device (5.1): a tap device behind two queues.
//!
//! Frames are read and written by the kernel straight into and out of the guest's buffers; one at
//! most is held in between. Who a frame claims to be from is not looked at here: the rules in the
//! network namespace of the tap do that.

mod header;
mod receive;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use model::microvm::RateLimit;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use self::receive::{Progress, Receiver};
use self::tap::Tap;
use super::events::{EventFlags, Events};
use super::{DeviceError, DeviceState, DeviceType, Source, VirtioDevice, Vrings, queue, read_space};
use crate::rate_limiter::RateLimiter;

/// The length of `struct virtio_net_hdr` (5.1.6), in bytes.
const HEADER: usize = 12;
/// The longest frame with its header, in bytes (5.1.6.3.1).
const MAX_FRAME: usize = 65562;
/// The smallest MTU that a driver must accept (5.1.4.1).
const MIN_MTU: u16 = 68;

const QUEUE_SIZES: [u16; 2] = [256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Tokens of [`Net::sources`].
const EVENTS: u32 = 0;
const TRANSMIT_LIMIT: u32 = 1;
const RECEIVE_LIMIT: u32 = 2;

/// The key of the tap in [`Events`].
const TAP: u64 = 0;

/// What a snapshot keeps.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    mtu: Option<u16>,
}

pub struct Net {
    /// None: no cable is plugged in.
    tap: Option<Tap>,
    mac: [u8; 6],
    mtu: Option<u16>,
    receiver: Receiver,
    transmit_limit: RateLimiter,
    receive_limit: RateLimiter,
    events: Events,
    /// The driver is to be told that the configuration is another one, once it is there.
    changed: bool,
    /// There was a tap, and it was removed.
    is_gone: bool,
}

impl Net {
    /// A device. The tap was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`; it is made
    /// non-blocking, and its header size and offloads are set.
    ///
    /// # Errors
    /// The tap is no such device or gone, the MTU is below 68, or the process may have no more open
    /// files.
    pub fn new(
        tap: Option<OwnedFd>,
        mac: [u8; 6],
        mtu: Option<u16>,
        transmit_limit: Option<RateLimit>,
        receive_limit: Option<RateLimit>,
    ) -> io::Result<Self> {
        if mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let tap = tap.map(Tap::new).transpose()?;
        let events = Events::new()?;
        if let Some(tap) = &tap {
            events.add(tap, TAP, EventFlags::IN)?;
        }
        Ok(Self {
            tap,
            mac,
            mtu,
            receiver: Receiver::new(),
            transmit_limit: RateLimiter::new(transmit_limit)?,
            receive_limit: RateLimiter::new(receive_limit)?,
            events,
            changed: false,
            is_gone: false,
        })
    }

    fn transmit(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        let queue = &mut vrings.queues[TRANSMIT];
        let before = queue.next_used();
        let more = transmit::transmit(
            self.tap.as_ref(),
            &mut self.transmit_limit,
            queue,
            &vrings.memory,
            vrings.features,
        )?;
        if more {
            self.events.call_again();
        }
        if queue::wants_interrupt(queue, &vrings.memory, before)? {
            vrings.interrupt.used_buffer();
        }
        Ok(())
    }

    fn receive(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        let Some(tap) = &self.tap else { return Ok(()) };
        let queue = &mut vrings.queues[RECEIVE];
        let before = queue.next_used();
        let progress =
            self.receiver.advance(tap, &mut self.receive_limit, queue, &vrings.memory, vrings.features)?;
        if queue::wants_interrupt(queue, &vrings.memory, before)? {
            vrings.interrupt.used_buffer();
        }
        match progress {
            Progress::More => self.events.call_again(),
            Progress::Waits => {}
            Progress::Lost => {
                // As if the cable had been pulled.
                self.tap = None;
                self.is_gone = true;
                vrings.interrupt.configuration_changed();
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_F_VERSION_1;
        for feature in [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_RING_F_EVENT_IDX,
        ] {
            features |= 1 << feature;
        }
        if self.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// 5.1.4: address, status, number of queue pairs, MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        // The flag is 1.
        let status = if self.tap.is_some() { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&1_u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_space(&config, offset, data);
    }

    fn gone(&self) -> Option<&'static str> {
        self.is_gone.then_some("network interface")
    }

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source { fd: self.events.as_raw_fd(), token: EVENTS }];
        sources.extend(self.transmit_limit.source(TRANSMIT_LIMIT));
        sources.extend(self.receive_limit.source(RECEIVE_LIMIT));
        sources
    }

    fn activate(&mut self, vrings: &mut Vrings) -> Result<(), DeviceError> {
        if let Some(tap) = &self.tap {
            tap.set_offloads(vrings.features)?;
        }
        if std::mem::take(&mut self.changed) {
            vrings.interrupt.configuration_changed();
        }
        Ok(())
    }

    fn notified(&mut self, queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        match queue {
            RECEIVE => self.receive(vrings),
            _ => self.transmit(vrings),
        }
    }

    fn ready(&mut self, token: u32, vrings: &mut Vrings) -> Result<(), DeviceError> {
        match token {
            TRANSMIT_LIMIT => {
                self.transmit_limit.expired()?;
                self.transmit(vrings)
            }
            RECEIVE_LIMIT => {
                self.receive_limit.expired()?;
                self.receive(vrings)
            }
            _ => {
                for (key, _) in self.events.take()? {
                    self.receiver.readable |= key == TAP;
                }
                self.receive(vrings)?;
                self.transmit(vrings)
            }
        }
    }

    fn reset(&mut self) {
        // What was announced before is not announced again; a frame that was held is lost.
        self.receiver = Receiver::new();
        self.transmit_limit.forget();
        self.receive_limit.forget();
        self.changed = false;
        if let Some(tap) = &self.tap {
            // Fails if the tap is gone, and then it does not matter.
            let _ = tap.set_offloads(0);
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(State { mtu: self.mtu })
    }

    /// The driver keeps the address and MTU that it read when it began; the supervisor sets those
    /// of the new interface.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Net(State { mtu }) = state else {
            return Err(DeviceError::Request("the state is not a network device's"));
        };
        // A driver that was offered an MTU goes on reading one.
        self.mtu = self.mtu.or(*mtu);
        self.changed = true;
        Ok(())
    }
}
