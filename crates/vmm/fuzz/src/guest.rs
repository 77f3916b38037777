//! A guest that does anything to a device: its registers, its queues, and all memory.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm::GuestMemory;
use vmm::virtio::mmio::{MmioDevice, Transport};
use vmm::virtio::{Interrupt, VirtioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::input::Input;

/// One megabyte, a hole of as much, one megabyte more.
const MIB: u64 = 1 << 20;
const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), MIB as usize), (GuestAddress(2 * MIB), MIB as usize)];
/// Queue N of a driver that keeps to the rules lies at `N * RING`: descriptors, then the rings.
const RING: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where such a driver's buffers are.
const BUFFERS: u64 = 0x8_0000;
/// Lengths of buffers that drivers use: of a status, of headers, of data with a status behind it.
const LENGTHS: [u16; 12] = [1, 4, 12, 16, 21, 44, 513, 1025, 1536, 4096, 4140, 8191];
/// The most deeds of one guest.
const MAX_STEPS: usize = 400;

/// Registers (4.2.2).
const STATUS: u64 = 0x070;
const REGISTERS: [u64; 25] = [
    0x000, 0x004, 0x008, 0x00c, 0x010, 0x014, 0x020, 0x024, 0x030, 0x034, 0x038, 0x044, 0x050, 0x060, 0x064,
    STATUS, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0b0, 0x0fc, 0x100,
];

/// A kind of device, and what the host does to it.
pub trait Subject {
    /// A device that was just made, in front of what there is on the host.
    fn device(&mut self) -> Box<dyn VirtioDevice>;

    /// Bytes that look like a request to the device.
    fn request(&self, _input: &mut Input<'_>) -> Vec<u8> {
        Vec::new()
    }

    /// The host does something.
    fn host(&mut self, _input: &mut Input<'_>) {}

    /// What must hold in the end, whatever the guest has done.
    fn check(&mut self) {}
}

/// Does as the input says.
pub fn run(mut subject: impl Subject, mut input: Input<'_>) {
    let mut guest = Guest::new(subject.device());
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        guest.step(&mut subject, &mut input);
    }
    drop(guest);
    subject.check();
}

struct Guest {
    device: MmioDevice,
    memory: GuestMemory,
    /// Per queue: its size, the next free descriptor, the available index.
    queues: Vec<(u16, u16, u16)>,
    next_buffer: u64,
}

fn transport(device: Box<dyn VirtioDevice>, memory: &GuestMemory) -> MmioDevice {
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).expect("few descriptors are open"));
    let transport = Transport::new(device, memory.clone(), Interrupt::new(line));
    MmioDevice::new(transport.expect("the queues have possible sizes"))
}

impl Guest {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = GuestMemory::from_ranges(&MEMORY).expect("2 MiB can be mapped");
        let queues = device.queue_sizes().iter().map(|&size| (size, 0, 0)).collect();
        Self { device: transport(device, &memory), memory, queues, next_buffer: BUFFERS }
    }

    fn step(&mut self, subject: &mut impl Subject, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 => {
                let register = input.one_of(&REGISTERS);
                self.write(register, input.u32());
            }
            1 => {
                let (at, length) = (u64::from(input.u16() % 0x1000), usize::from(input.byte() % 8) + 1);
                self.device.write(at, input.bytes(length));
            }
            2 => {
                let (at, length) = (u64::from(input.u16() % 0x1000), usize::from(input.byte() % 8) + 1);
                self.device.read(at, &mut vec![0xaa; length]);
            }
            3 => self.start(input),
            4 | 5 => self.offer(subject, input),
            6 => {
                let queue = u64::from(input.byte() % 8) * RING;
                let at = match input.byte() % 3 {
                    0 => queue + 16 * u64::from(input.byte()),
                    1 => queue + AVAILABLE + u64::from(input.u16() % 0x300),
                    _ => queue + USED + u64::from(input.u16() % 0x900),
                };
                self.put(at, &input.u64().to_le_bytes());
            }
            7 => {
                let at = address(input);
                let length = usize::from(input.byte());
                self.put(at, input.bytes(length));
            }
            8 => {
                let queue = usize::from(input.byte() % 8);
                self.device.lock().notified(queue);
            }
            9 => self.serve_sources(),
            10 => subject.host(input),
            _ => self.move_elsewhere(subject),
        }
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // Where there is no memory, there is nothing to write to.
        let _ = self.memory.write(bytes, GuestAddress(at));
    }

    /// As a driver begins (3.1.1), with some of the features and with queues in their places.
    fn start(&mut self, input: &mut Input<'_>) {
        let without = input.u32();
        self.write(STATUS, 0);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        let features = self.device.lock().device().features() & !u64::from(without);
        for half in 0..2 {
            self.write(0x024, half);
            self.write(0x020, (features >> (32 * half)) as u32);
        }
        self.write(STATUS, 11);
        for (index, (size, free, available)) in (0u32..).zip(&mut self.queues) {
            let base = u64::from(index) * RING;
            (*free, *available) = (0, 0);
            for register in [AVAILABLE, USED] {
                let _ = self.memory.write(&[0; 4], GuestAddress(base + register));
            }
            let write =
                |register: u64, value: u64| self.device.write(register, &(value as u32).to_le_bytes());
            for (register, value) in [
                (0x030, index.into()),
                (0x038, (*size).into()),
                (0x080, base),
                (0x090, base + AVAILABLE),
                (0x0a0, base + USED),
                (0x044, 1),
            ] {
                write(register, value);
            }
        }
        self.write(STATUS, 15);
    }

    /// Makes a chain available, with a request in it that may make sense, and notifies the device.
    fn offer(&mut self, subject: &impl Subject, input: &mut Input<'_>) {
        let queue = usize::from(input.byte()) % self.queues.len().max(1);
        let Some(&mut (size, ref mut free, ref mut available)) = self.queues.get_mut(queue) else { return };
        let base = queue as u64 * RING;
        let request = subject.request(input);
        let head = *free;
        let count = input.byte() % 6 + 1;
        let mut written = 0;
        for number in 1..=count {
            let (kind, length) = (input.byte(), u32::from(length(input)));
            let index = *free;
            *free = (index + 1) % size;
            let mut flags = u16::from(number < count) | if kind & 1 != 0 { 2 } else { 0 };
            let (at, length) = match kind >> 1 {
                // The request's bytes, or a part of them.
                0..=63 if written < request.len() && kind & 1 == 0 => {
                    let rest = &request[written..];
                    let part =
                        &rest[..rest.len().min(if kind & 2 == 0 { rest.len() } else { length as usize })];
                    written += part.len();
                    let _ = self.memory.write(part, GuestAddress(self.next_buffer));
                    (self.next_buffer, part.len() as u32)
                }
                0..=119 => (self.next_buffer, length % 0x2000),
                120..=123 => (address(input), length),
                124 => {
                    flags |= 4;
                    (base + 16 * u64::from(kind), 16 * (length % 64))
                }
                _ => (input.u64(), input.u32()),
            };
            self.next_buffer = BUFFERS + (self.next_buffer - BUFFERS + 0x2040) % 0x7_0000;
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&at.to_le_bytes());
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&free.to_le_bytes());
            let _ = self.memory.write(&descriptor, GuestAddress(base + 16 * u64::from(index)));
        }
        let slot = base + AVAILABLE + 4 + 2 * u64::from(*available % size);
        *available = available.wrapping_add(1);
        let _ = self.memory.write(&head.to_le_bytes(), GuestAddress(slot));
        let _ = self.memory.write(&available.to_le_bytes(), GuestAddress(base + AVAILABLE + 2));
        self.device.lock().notified(queue);
    }

    /// What the device's thread does for descriptors that are ready.
    #[allow(unsafe_code)]
    fn serve_sources(&self) {
        let mut transport = self.device.lock();
        if transport.activation().is_none() {
            return;
        }
        for source in transport.device().sources() {
            // SAFETY: the device keeps its sources open for as long as it lives, which is locked.
            let fd = unsafe { BorrowedFd::borrow_raw(source.fd) };
            let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0) {
                transport.ready(source.token);
            }
        }
    }

    /// The machine is written down and goes on with another device of the same kind.
    fn move_elsewhere(&mut self, subject: &mut impl Subject) {
        let (registers, state) = {
            let transport = self.device.lock();
            (transport.save(), transport.device().save())
        };
        let text = serde_json::to_vec(&(&registers, &state)).expect("a state can be written");
        let (registers, state) = serde_json::from_slice(&text).expect("and be read again");
        let device = transport(subject.device(), &self.memory);
        // Refused, if what stands behind the device cannot take its place.
        if device.lock().restore(&registers, &state).is_ok() {
            assert_eq!(serde_json::to_vec(&device.lock().device().save()).ok().map(|_| ()), Some(()));
            self.device = device;
        }
    }
}

fn length(input: &mut Input<'_>) -> u16 {
    let length = input.u16();
    if length < 0x8000 { length } else { LENGTHS[usize::from(length) % LENGTHS.len()] }
}

/// An address in memory, at its edges, or anywhere.
fn address(input: &mut Input<'_>) -> u64 {
    let near = u64::from(input.u16());
    match input.byte() % 8 {
        0..=3 => near * 16,
        4 => MIB - 64 + near % 128,
        5 => 2 * MIB - 64 + near % 128,
        6 => 3 * MIB - 64 + near % 128,
        _ => u64::MAX - near,
    }
}
