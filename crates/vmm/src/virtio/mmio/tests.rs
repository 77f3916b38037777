//! The transport, driven well and badly.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::{DeviceState, DeviceType, balloon};

const MEMORY: usize = 1 << 20;
/// All rings that the tests set up lie below this address.
const RINGS_END: u64 = 0x1_0000;
const FEATURE: u64 = 1 << 5;

/// Uses every buffer up, and counts how it is called.
#[derive(Default)]
struct Consumer {
    config: [u8; 8],
    activated: usize,
    resets: usize,
    fails: bool,
}

impl VirtioDevice for Consumer {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        FEATURE | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_space(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = usize::try_from(offset)
            && let Some(place) = self.config.get_mut(offset..offset.saturating_add(data.len()))
        {
            place.copy_from_slice(data);
        }
    }

    fn activate(&mut self, _: &mut Vrings) -> Result<(), DeviceError> {
        self.activated += 1;
        Ok(())
    }

    fn notified(&mut self, queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        if self.fails {
            return Err(DeviceError::Request("as the test wishes"));
        }
        let memory = vrings.memory.clone();
        // Not for ever, whatever the rings say.
        for _ in 0..100 {
            let Some(chain) = vrings.queues[queue].pop_descriptor_chain(&memory) else { break };
            vrings.queues[queue].add_used(&memory, chain.head_index(), 0)?;
        }
        vrings.notify(queue)
    }

    fn reset(&mut self) {
        self.resets += 1;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(balloon::State { target: 0, actual: 0 })
    }

    fn restore(&mut self, _: &DeviceState) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn device(consumer: Consumer) -> (MmioDevice, GuestMemory) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let transport = Transport::new(Box::new(consumer), memory.clone(), Interrupt::new(line)).unwrap();
    (MmioDevice::new(transport), memory)
}

fn read(device: &MmioDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn save(device: &MmioDevice) -> (State, DeviceState) {
    let transport = device.lock();
    (transport.save(), transport.device().save())
}

fn write(device: &MmioDevice, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

/// As a driver begins (3.1.1), up to and with `FEATURES_OK`.
fn negotiate(device: &MmioDevice, features: u64) -> u32 {
    write(device, register::STATUS, 0);
    write(device, register::STATUS, ACKNOWLEDGE);
    write(device, register::STATUS, ACKNOWLEDGE | DRIVER);
    for half in 0..2 {
        write(device, register::DRIVER_FEATURES_SELECT, half);
        write(device, register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    write(device, register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    read(device, register::STATUS)
}

fn set_up_queue(device: &MmioDevice, queue: u32, base: u32) {
    write(device, register::QUEUE_SELECT, queue);
    write(device, register::QUEUE_SIZE, 16);
    write(device, register::QUEUE_DESCRIPTORS_LOW, base);
    write(device, register::QUEUE_DRIVER_LOW, base + 0x1000);
    write(device, register::QUEUE_DEVICE_LOW, base + 0x2000);
    write(device, register::QUEUE_READY, 1);
}

const ALL_OK: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

fn start(device: &MmioDevice) {
    assert_eq!(negotiate(device, FEATURE | (1 << VIRTIO_F_VERSION_1)), ALL_OK & !DRIVER_OK);
    set_up_queue(device, 0, 0x1000);
    set_up_queue(device, 1, 0x5000);
    write(device, register::STATUS, ALL_OK);
    assert_eq!(read(device, register::STATUS), ALL_OK);
}

#[test]
fn registers_say_what_the_device_is() {
    let (device, _) = device(Consumer::default());
    assert_eq!(read(&device, register::MAGIC).to_le_bytes(), *b"virt");
    assert_eq!(read(&device, register::VERSION), 2);
    assert_eq!(read(&device, register::DEVICE_ID), 5);
    let features = |half| {
        write(&device, register::DEVICE_FEATURES_SELECT, half);
        read(&device, register::DEVICE_FEATURES)
    };
    assert_eq!(features(0), (FEATURE as u32) | (1 << VIRTIO_RING_F_EVENT_IDX));
    assert_eq!(features(1), 1);
    assert_eq!(features(2), 0);
    for (queue, size) in [(0, 64), (1, 16), (2, 0), (u32::MAX, 0)] {
        write(&device, register::QUEUE_SELECT, queue);
        assert_eq!(read(&device, register::QUEUE_SIZE_MAX), size);
    }
    assert_eq!(read(&device, 0x0b0), u32::MAX);
}

#[test]
fn features_are_agreed_to_only_if_offered() {
    let (device, _) = device(Consumer::default());
    let version = 1 << VIRTIO_F_VERSION_1;
    let without = ACKNOWLEDGE | DRIVER;
    assert_eq!(negotiate(&device, 0), without);
    assert_eq!(negotiate(&device, FEATURE), without);
    assert_eq!(negotiate(&device, version | (1 << 6)), without);
    assert_eq!(negotiate(&device, version | (1 << 40)), without);
    assert_eq!(negotiate(&device, version), without | FEATURES_OK);
    // Nothing is ready before that, and nothing can be changed after it.
    write(&device, register::DRIVER_FEATURES_SELECT, 0);
    write(&device, register::DRIVER_FEATURES, FEATURE as u32);
    assert_eq!(device.lock().driver_features, version);
}

#[test]
fn the_status_grows_in_order_and_queues_are_set_up_in_their_time() {
    let (device, _) = device(Consumer::default());
    write(&device, register::STATUS, DRIVER_OK);
    write(&device, register::STATUS, DRIVER);
    assert_eq!(read(&device, register::STATUS), 0);
    set_up_queue(&device, 0, 0x1000);
    assert!(!device.lock().vrings.queues[0].ready(), "before FEATURES_OK");
    start(&device);
    assert_eq!(device.lock().activation(), Some(1));
    write(&device, register::STATUS, ACKNOWLEDGE);
    assert_eq!(read(&device, register::STATUS), ALL_OK, "a bit cannot be taken back");
    write(&device, register::QUEUE_READY, 0);
    assert!(device.lock().vrings.queues[1].ready(), "after DRIVER_OK");
    write(&device, register::STATUS, 0);
    assert_eq!(device.lock().activation(), None);
    assert!(!device.lock().vrings.queues[0].ready());
    start(&device);
    assert_eq!(device.lock().activation(), Some(2));
    write(&device, register::STATUS, ALL_OK | FAILED);
    assert_eq!(device.lock().activation(), None);
}

#[test]
fn buffers_are_used_and_the_driver_is_interrupted() {
    let (device, memory) = device(Consumer::default());
    start(&device);
    // One descriptor, made available.
    memory.write_obj(0x8000_u64, GuestAddress(0x1000)).unwrap();
    memory.write_obj(16_u32, GuestAddress(0x1008)).unwrap();
    memory.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
    write(&device, register::QUEUE_NOTIFY, 0);
    assert_eq!(device.lock().notifications()[0].read().unwrap(), 1);
    device.lock().notified(0);
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 1);
    assert_eq!(read(&device, register::INTERRUPT_STATUS), 1);
    write(&device, register::INTERRUPT_ACKNOWLEDGE, 1);
    assert_eq!(read(&device, register::INTERRUPT_STATUS), 0);
}

#[test]
fn a_device_that_fails_needs_a_reset_and_gets_one() {
    let (device, _) = device(Consumer { fails: true, ..Consumer::default() });
    for _ in 0..20 {
        start(&device);
        let generation = read(&device, register::CONFIG_GENERATION);
        device.lock().notified(0);
        assert_eq!(read(&device, register::STATUS), ALL_OK | NEEDS_RESET);
        assert_eq!(read(&device, register::INTERRUPT_STATUS), 2);
        assert_ne!(read(&device, register::CONFIG_GENERATION), generation);
        assert_eq!(device.lock().activation(), None);
        write(&device, register::STATUS, ALL_OK | NEEDS_RESET);
        assert_eq!(device.lock().activation(), None);
    }
}

#[test]
fn a_queue_outside_of_memory_needs_a_reset() {
    let (device, _) = device(Consumer::default());
    negotiate(&device, 1 << VIRTIO_F_VERSION_1);
    set_up_queue(&device, 0, MEMORY as u32 - 0x1000);
    write(&device, register::STATUS, ALL_OK);
    assert_eq!(read(&device, register::STATUS), ALL_OK | NEEDS_RESET);
    assert_eq!(device.lock().activation(), None);
}

#[test]
fn registers_survive_a_snapshot() {
    let (ours, _) = device(Consumer::default());
    start(&ours);
    ours.lock().vrings.interrupt.used_buffer();
    let (state, device_state) = save(&ours);
    let text = serde_json::to_string(&state).unwrap();
    let (theirs, _) = device(Consumer::default());
    theirs.lock().restore(&serde_json::from_str(&text).unwrap(), &device_state).unwrap();
    assert_eq!(theirs.lock().save(), state);
    assert_eq!(theirs.lock().activation(), Some(1));
    assert_eq!(theirs.lock().changed().read().unwrap(), 1);

    let mut fewer = state.clone();
    fewer.queues.pop();
    let error = theirs.lock().restore(&fewer, &device_state).unwrap_err();
    assert!(matches!(error, RestoreError::Queues { ours: 2, theirs: 1 }), "{error}");
    let mut more = state.clone();
    more.driver_features |= 1 << 20;
    let error = theirs.lock().restore(&more, &device_state).unwrap_err();
    assert!(matches!(error, RestoreError::Features(_)), "{error}");
}

/// What a guest does, and what its device's thread does meanwhile.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Register(u64, u32),
    Start,
    Memory(u64, u64),
    Notified(usize),
    Ready(u32),
    SaveAndRestore,
}

fn ring_address() -> impl Strategy<Value = u32> {
    // Below the end of the rings, or outside of memory.
    prop_oneof![0..(RINGS_END as u32 - 0x400), Just(MEMORY as u32 - 8), Just(u32::MAX)]
}

fn step() -> impl Strategy<Value = Step> {
    let address_registers = prop::sample::select(vec![0x080_u64, 0x090, 0x0a0]);
    let other_registers = prop::sample::select(
        (0..0x140_u64).step_by(4).filter(|at| !(0x080..0x0a8).contains(at)).collect::<Vec<_>>(),
    );
    let value =
        prop_oneof![0..16_u32, prop::sample::select(vec![1, 3, 11, 15, 64, 79, 128, 143]), any::<u32>()];
    prop_oneof![
        2 => (0..0x1000_u64, prop::sample::select(vec![1, 2, 4, 8])).prop_map(|(at, len)| Step::Read(at, len)),
        1 => (prop_oneof![0..0x080_u64, 0x0a8..0x1000_u64], prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, data)| Step::Write(at, data)),
        4 => (address_registers, ring_address()).prop_map(|(at, value)| Step::Register(at, value)),
        6 => (other_registers, value).prop_map(|(at, value)| Step::Register(at, value)),
        2 => Just(Step::Start),
        4 => (0..RINGS_END - 8, any::<u64>()).prop_map(|(at, value)| Step::Memory(at, value)),
        3 => (0..3_usize).prop_map(Step::Notified),
        1 => any::<u32>().prop_map(Step::Ready),
        1 => Just(Step::SaveAndRestore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Nothing panics, and no memory is written to but where rings may be.
    #[test]
    fn garbage_does_no_harm(steps in prop::collection::vec(step(), 1..80)) {
        let (mut device, mut memory) = device(Consumer::default());
        for step in steps {
            match step {
                Step::Read(at, length) => device.read(at, &mut vec![0xaa; length]),
                Step::Write(at, data) => device.write(at, &data),
                Step::Register(at, value) => write(&device, at, value),
                Step::Start => start(&device),
                Step::Memory(at, value) => memory.write_obj(value, GuestAddress(at)).unwrap(),
                Step::Notified(queue) => device.lock().notified(queue),
                Step::Ready(token) => device.lock().ready(token),
                Step::SaveAndRestore => {
                    let (state, device_state) = save(&device);
                    let (other, other_memory) = self::device(Consumer::default());
                    let mut rings = vec![0; RINGS_END as usize];
                    memory.read_slice(&mut rings, GuestAddress(0)).unwrap();
                    other_memory.write_slice(&rings, GuestAddress(0)).unwrap();
                    other.lock().restore(&state, &device_state).unwrap();
                    (device, memory) = (other, other_memory);
                }
            }
            let status = read(&device, register::STATUS);
            let is_active = device.lock().activation().is_some();
            prop_assert!(!is_active || status & (NEEDS_RESET | FAILED | DRIVER_OK) == DRIVER_OK);
        }
        let mut rest = vec![0; MEMORY - RINGS_END as usize];
        memory.read_slice(&mut rest, GuestAddress(RINGS_END)).unwrap();
        prop_assert!(rest.iter().all(|byte| *byte == 0));
    }
}
