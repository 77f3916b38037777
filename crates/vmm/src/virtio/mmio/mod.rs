//! The transport of virtio devices: registers in a window of memory (VIRTIO 1.2, 4.2).
//!
//! The guest may write anything anywhere at any time. What it may not write is ignored; what makes
//! no sense makes the device need a reset.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{DeviceError, Interrupt, VirtioDevice, Vrings};
use crate::GuestMemory;

mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS_LOW: u64 = 0x080;
    pub const QUEUE_DESCRIPTORS_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// The length and base of a shared memory region; there is none.
    pub const SHARED_MEMORY: std::ops::RangeInclusive<u64> = 0x0b0..=0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// The offset of the register that is written to notify a queue.
pub const NOTIFY_OFFSET: u64 = register::QUEUE_NOTIFY;
/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Of the register layout; 1 is "legacy".
const VERSION: u32 = 2;
/// "CORA": any number will do (4.2.2).
const VENDOR: u32 = u32::from_le_bytes(*b"CORA");
/// The most that a guest's mistakes are told of per device: it can make them without end.
const MAX_REPORTS: u8 = 8;

/// A device on the bus.
pub struct MmioDevice {
    /// Apart from the transport, whose lock a device's thread may hold while it waits for a disk.
    interrupt: Interrupt,
    transport: Mutex<Transport>,
}

impl MmioDevice {
    #[must_use]
    pub fn new(transport: Transport) -> Self {
        Self { interrupt: transport.vrings.interrupt.clone(), transport: Mutex::new(transport) }
    }

    /// Waits for whoever uses the device now.
    pub fn lock(&self) -> MutexGuard<'_, Transport> {
        // A panic ends the machine; until then what is there is as good as any.
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads. `offset` lies in the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == register::INTERRUPT_STATUS && data.len() == 4 {
            data.copy_from_slice(&self.interrupt.status().to_le_bytes());
        } else {
            self.lock().read(offset, data);
        }
    }

    /// The guest writes.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match <[u8; 4]>::try_from(data) {
            Ok(bits) if offset == register::INTERRUPT_ACKNOWLEDGE => {
                self.interrupt.acknowledge(u32::from_le_bytes(bits));
            }
            _ => self.lock().write(offset, data),
        }
    }
}

/// The registers of one device, and the device.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    vrings: Vrings,
    notifications: Vec<EventFd>,
    /// Written to when the device becomes active or ceases to be.
    changed: EventFd,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    active: bool,
    /// How often the device has become active: tells its thread that it was reset meanwhile.
    activations: u64,
    reports: u8,
}

/// The registers' part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    active: bool,
    interrupt_status: u32,
    config_generation: u32,
    queues: Vec<QueueState>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueState {
    size: u16,
    ready: bool,
    next_available: u16,
    next_used: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// A snapshot's registers do not fit this device.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the snapshot's device has {theirs} queues, and this one has {ours}")]
    Queues { ours: usize, theirs: usize },
    #[error("the snapshot's device speaks features that this one lacks: {0:#x}")]
    Features(u64),
    #[error("a queue of the snapshot is malformed")]
    Queue(#[from] virtio_queue::Error),
    #[error("the device does not take the snapshot's state on")]
    Device(#[from] DeviceError),
}

impl Transport {
    /// A device that was just reset.
    ///
    /// # Errors
    /// A queue's size is not a power of two, or the host gives no more descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Interrupt,
    ) -> Result<Self, DeviceError> {
        let sizes = device.queue_sizes();
        let queues = sizes.iter().map(|&size| Queue::new(size)).collect::<Result<_, _>>()?;
        let event = || EventFd::new(EFD_NONBLOCK);
        let notifications = sizes.iter().map(|_| event()).collect::<Result<_, _>>()?;
        Ok(Self {
            vrings: Vrings { memory, queues, interrupt, features: 0 },
            device,
            notifications,
            changed: event()?,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            active: false,
            activations: 0,
            reports: 0,
        })
    }

    /// One event descriptor for each queue, which tells that the driver has notified it.
    #[must_use]
    pub fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    /// Tells that the device has become active or ceased to be.
    #[must_use]
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }

    #[must_use]
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// `None`: inactive; otherwise how often it has become active.
    #[must_use]
    pub fn activation(&self) -> Option<u64> {
        self.active.then_some(self.activations)
    }

    /// The driver has notified this queue.
    pub fn notified(&mut self, queue: usize) {
        if self.active && self.vrings.queues.get(queue).is_some_and(QueueT::ready) {
            let result = self.device.notified(queue, &mut self.vrings);
            self.check(result);
        }
    }

    /// A source of the device is readable.
    pub fn ready(&mut self, token: u32) {
        if self.active {
            let result = self.device.ready(token, &mut self.vrings);
            self.check(result);
        }
    }

    fn check(&mut self, result: Result<(), DeviceError>) {
        let Err(error) = result else { return };
        if self.reports < MAX_REPORTS {
            self.reports += 1;
            let device = self.device.device_type();
            crate::log::warning(&format!("the {device:?} device needs a reset"), &error);
        }
        self.status |= NEEDS_RESET;
        self.deactivate();
        // "If DRIVER_OK is set, … the device MUST send a configuration change notification" (2.1.2).
        if self.status & DRIVER_OK != 0 {
            self.vrings.interrupt.configuration_changed();
        }
    }

    fn activate(&mut self) {
        self.vrings.features = self.driver_features;
        let event_index = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for queue in &mut self.vrings.queues {
            queue.set_event_idx(event_index);
            if queue.ready() && !queue.is_valid(&self.vrings.memory) {
                return self.check(Err(DeviceError::Request("a queue lies outside of memory")));
            }
        }
        self.active = true;
        self.activations += 1;
        let result = self.device.activate(&mut self.vrings);
        self.check(result);
        self.tell_thread();
    }

    fn deactivate(&mut self) {
        if self.active {
            self.active = false;
            self.tell_thread();
        }
    }

    fn tell_thread(&self) {
        // Fails only if 2^64-2 tidings are pending.
        let _ = self.changed.write(1);
    }

    fn reset(&mut self) {
        self.deactivate();
        self.device.reset();
        for queue in &mut self.vrings.queues {
            queue.reset();
        }
        self.vrings.features = 0;
        self.vrings.interrupt.acknowledge(u32::MAX);
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
    }

    /// The device's features, and what every device behind this transport has.
    fn features(&self) -> u64 {
        self.device.features() | (1 << VIRTIO_F_VERSION_1)
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= register::CONFIG {
            return self.device.read_config(offset - register::CONFIG, data);
        }
        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.vrings.queues.get(self.queue_select as usize);
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.device_type() as u32,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match self.device_features_select {
                0 => self.features() as u32,
                1 => (self.features() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            register::INTERRUPT_STATUS => self.vrings.interrupt.status(),
            register::STATUS => self.status,
            // "If the region does not exist, reads return all ones" (4.2.2).
            offset if register::SHARED_MEMORY.contains(&offset) => u32::MAX,
            register::CONFIG_GENERATION => self.vrings.interrupt.generation(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            if self.status & DRIVER != 0 && self.status & (FAILED | NEEDS_RESET) == 0 {
                self.device.write_config(offset - register::CONFIG, data);
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            register::DRIVER_FEATURES => self.set_driver_features(value),
            register::QUEUE_SELECT => self.queue_select = value,
            register::QUEUE_NOTIFY => {
                // KVM tells of notifications by itself (ioeventfd); this is for where it does not.
                if let Some(event) = self.notifications.get(value as usize) {
                    let _ = event.write(1);
                }
            }
            register::INTERRUPT_ACKNOWLEDGE => self.vrings.interrupt.acknowledge(value),
            register::STATUS => self.set_status(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    /// Features can be chosen while they are being negotiated only (3.1.1, steps 4 and 5).
    fn set_driver_features(&mut self, value: u32) {
        if self.status & DRIVER == 0 || self.status & (FEATURES_OK | FAILED | NEEDS_RESET) != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => {}
        }
    }

    /// The status only grows, step by step, until it is reset by a zero (2.1, 3.1.1).
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        if self.status & !value & !NEEDS_RESET != 0 || self.status & FAILED != 0 {
            return;
        }
        if added & FAILED != 0 {
            self.status |= FAILED;
            return self.deactivate();
        }
        if added & ACKNOWLEDGE != 0 {
            self.status |= ACKNOWLEDGE;
        }
        if added & DRIVER != 0 && self.status & ACKNOWLEDGE != 0 {
            self.status |= DRIVER;
        }
        let negotiated = self.driver_features & !self.features() == 0
            && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        if added & FEATURES_OK != 0 && self.status & DRIVER != 0 && negotiated {
            self.status |= FEATURES_OK;
        }
        let is_ready = self.status & FEATURES_OK != 0 && self.status & NEEDS_RESET == 0;
        if added & DRIVER_OK != 0 && is_ready {
            self.status |= DRIVER_OK;
            self.activate();
        }
    }

    /// Queues are set up between `FEATURES_OK` and `DRIVER_OK` (3.1.1, step 7).
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET) != FEATURES_OK {
            return;
        }
        let Some(queue) = self.vrings.queues.get_mut(self.queue_select as usize) else { return };
        if offset == register::QUEUE_READY {
            return queue.set_ready(value == 1);
        }
        if queue.ready() {
            return;
        }
        match offset {
            // What is no size (zero, too big, no power of two) is ignored.
            register::QUEUE_SIZE => {
                if let Ok(size) = u16::try_from(value) {
                    let _ = queue.try_set_size(size);
                }
            }
            register::QUEUE_DESCRIPTORS_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESCRIPTORS_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// The registers, while nothing runs.
    #[must_use]
    pub fn save(&self) -> State {
        let queues = self.vrings.queues.iter().map(|queue| QueueState {
            size: queue.size(),
            ready: queue.ready(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
        });
        State {
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            active: self.active,
            interrupt_status: self.vrings.interrupt.status(),
            config_generation: self.vrings.interrupt.generation(),
            queues: queues.collect(),
        }
    }

    /// Takes a snapshot's registers and device state on. What stands behind the device is new; it
    /// tells an active driver itself if its configuration is another one.
    ///
    /// # Errors
    /// They are another device's.
    pub fn restore(&mut self, state: &State, device: &super::DeviceState) -> Result<(), RestoreError> {
        let (ours, theirs) = (self.vrings.queues.len(), state.queues.len());
        if ours != theirs {
            return Err(RestoreError::Queues { ours, theirs });
        }
        // The device first: what it offers may follow from its state, and it knows better what does
        // not fit.
        self.device.restore(device)?;
        let lacking = state.driver_features & !self.features();
        if lacking != 0 && state.status & FEATURES_OK != 0 {
            return Err(RestoreError::Features(lacking));
        }
        for (queue, saved) in self.vrings.queues.iter_mut().zip(&state.queues) {
            *queue = Queue::try_from(virtio_queue::QueueState {
                max_size: queue.max_size(),
                next_avail: saved.next_available,
                next_used: saved.next_used,
                event_idx_enabled: false,
                size: saved.size,
                ready: saved.ready,
                desc_table: saved.descriptors,
                avail_ring: saved.available,
                used_ring: saved.used,
            })?;
        }
        self.status = state.status;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.vrings.interrupt.restore(state.interrupt_status, state.config_generation);
        if state.active {
            self.activate();
        }
        Ok(())
    }
}

/// The devices of a machine, in the guest's order.
pub type Devices = Vec<Arc<MmioDevice>>;

#[cfg(test)]
mod tests;
