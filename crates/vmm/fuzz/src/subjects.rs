//! The devices, and what is on the host behind them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use vmm::virtio::balloon::{self, Balloon};
use vmm::virtio::block::Block;
use vmm::virtio::entropy::Entropy;
use vmm::virtio::net::Net;
use vmm::virtio::vsock::{Vsock, VsockPort};
use vmm::virtio::{DeviceError, DeviceState, DeviceType, VirtioDevice, Vrings};

use super::guest::Subject;
use super::input::Input;
use super::tap::Tap;

/// A file in memory.
pub fn file(contents: &[u8], size: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("few descriptors are open"));
    file.set_len(size).expect("a file in memory can have any size");
    file.write_all_at(contents, 0).expect("there is memory");
    file
}

pub struct Disk {
    parts: Vec<File>,
    sizes: [u64; 2],
    read_only: bool,
}

impl Disk {
    const CONTENTS: &[u8] = b"the image of all tasks";

    pub fn new(input: &mut Input<'_>) -> Self {
        let read_only = input.flag();
        // Only between parts that cannot be written to is there a gap.
        let sizes = [if read_only { 63_000 } else { 64 << 10 }, 16 << 10];
        Self { parts: sizes.map(|size| file(Self::CONTENTS, size)).into(), sizes, read_only }
    }
}

impl Subject for Disk {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        for (part, size) in self.parts.iter().zip(self.sizes) {
            part.set_len(size).expect("it is open for writing");
        }
        let parts = self.parts.iter().map(|part| part.try_clone().expect("few descriptors are open"));
        let block = Block::new(parts.collect(), self.read_only, None, *b"disk of a fuzzed one");
        Box::new(block.expect("files of whole pages make a disk"))
    }

    /// 5.2.6: a header, and what may be data or ranges.
    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let kind = input.one_of(&[0_u32, 1, 4, 8, 11, 13, 14, 255]);
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        let sector = u64::from(input.byte());
        bytes.extend(sector.to_le_bytes());
        for _ in 0..input.byte() % 4 {
            bytes.extend(u64::from(input.byte()).to_le_bytes());
            bytes.extend(u32::from(input.byte()).to_le_bytes());
            bytes.extend(u32::from(input.byte() % 4).to_le_bytes());
        }
        bytes.resize(bytes.len() + usize::from(input.byte() % 3) * 512, 0x5a);
        bytes
    }

    /// The file becomes shorter, or as long as it was.
    fn host(&mut self, input: &mut Input<'_>) {
        if !self.read_only {
            let size = if input.flag() { self.sizes[1] } else { u64::from(input.u16() % 0x4000) };
            let _ = self.parts[1].set_len(size);
        }
    }

    fn check(&mut self) {
        for (part, size) in self.parts.iter().zip(self.sizes) {
            let length = part.metadata().expect("it is open").len();
            assert!(length <= size, "a disk's file has grown to {length} bytes");
            if self.read_only {
                let mut contents = vec![0; length as usize];
                part.read_exact_at(&mut contents, 0).expect("so long it is");
                assert!(length == size && contents.starts_with(Self::CONTENTS));
                assert!(contents[Self::CONTENTS.len()..].iter().all(|byte| *byte == 0));
            }
        }
    }
}

pub struct Network {
    tap: &'static Tap,
    mtu: Option<u16>,
}

impl Network {
    pub fn new(input: &mut Input<'_>) -> Self {
        Self { tap: Tap::get(), mtu: input.flag().then_some(1500) }
    }
}

impl Subject for Network {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let net = Net::new(Some(self.tap.device()), [2, 0, 0, 0, 0, 1], self.mtu, None, None);
        Box::new(net.expect("the tap is one"))
    }

    /// 5.1.6: a header, and a frame to nobody.
    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let header = input.bytes(10);
        if input.flag() {
            bytes[..header.len()].copy_from_slice(header);
        }
        bytes.extend([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1]);
        bytes.extend(input.one_of(&[[0x88, 0xb5], [8, 0], [0x86, 0xdd]]));
        let length = usize::from(input.byte());
        bytes.extend(input.bytes(length));
        bytes.resize(bytes.len() + usize::from(input.byte()) * 8, 0x45);
        bytes
    }

    fn host(&mut self, input: &mut Input<'_>) {
        let length = 10 + 14 + usize::from(input.u16() % 9000);
        let mut frame = vec![0; length];
        if input.flag() {
            // What a host's own stack says of checksums and segments.
            let header = input.bytes(10);
            frame[..header.len()].copy_from_slice(header);
        }
        frame[10..24].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        self.tap.send(&frame);
    }
}

pub struct Sockets {
    address: SocketAddr,
    peers: Vec<UnixStream>,
    /// The first device's, before it is made.
    listener: Option<UnixListener>,
}

impl Sockets {
    const PORT: u32 = 1024;
    /// The host's ports begin here.
    const FIRST_PORT: u32 = 1024;

    pub fn new() -> Self {
        let (address, listener) = Self::listen();
        Self { address, peers: Vec::new(), listener: Some(listener) }
    }

    fn listen() -> (SocketAddr, UnixListener) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("vmm-fuzz-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("nobody else has this name");
        (address, listener)
    }
}

impl Subject for Sockets {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let listener = self.listener.take().unwrap_or_else(|| {
            let (address, listener) = Self::listen();
            self.address = address;
            listener
        });
        Box::new(Vsock::new(vec![VsockPort { listener, port: Self::PORT }]).expect("one listener"))
    }

    /// 5.10.6: `struct virtio_vsock_hdr` and a payload.
    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let port = Self::FIRST_PORT + u32::from(input.byte() % 4);
        let operation = u16::from(input.byte() % 9);
        let payload = usize::from(input.byte());
        let says = if input.byte().is_multiple_of(8) { input.u32() } else { payload as u32 };
        let mut bytes = 3_u64.to_le_bytes().to_vec();
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(Self::PORT.to_le_bytes());
        bytes.extend(port.to_le_bytes());
        bytes.extend(says.to_le_bytes());
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend(operation.to_le_bytes());
        bytes.extend(u32::from(input.byte() % 4).to_le_bytes());
        bytes.extend(input.one_of(&[0_u32, 1, 4096, 1 << 20, u32::MAX]).to_le_bytes());
        bytes.extend(input.one_of(&[0_u32, 1, 100, 1 << 16, u32::MAX]).to_le_bytes());
        bytes.resize(bytes.len() + payload, b'x');
        bytes
    }

    fn host(&mut self, input: &mut Input<'_>) {
        let peer = usize::from(input.byte()) % self.peers.len().max(1);
        match input.byte() % 5 {
            0 if self.peers.len() < 80 => {
                let stream = UnixStream::connect_addr(&self.address);
                let stream = stream.inspect(|stream| {
                    let _ = stream.set_nonblocking(true);
                });
                self.peers.extend(stream.ok());
            }
            1 if peer < self.peers.len() => drop(self.peers.swap_remove(peer)),
            2 => {
                if let Some(peer) = self.peers.get(peer) {
                    let _ = peer.shutdown(std::net::Shutdown::Write);
                }
            }
            3 => {
                let length = usize::from(input.u16());
                if let Some(mut peer) = self.peers.get(peer) {
                    let _ = peer.write(&vec![b'y'; length]);
                }
            }
            _ => {
                if let Some(mut peer) = self.peers.get(peer) {
                    let _ = peer.read(&mut [0; 4096]);
                }
            }
        }
    }
}

pub struct Memory {
    control: balloon::Control,
}

impl Memory {
    pub fn new() -> Self {
        Self { control: Balloon::new().control() }
    }
}

impl Subject for Memory {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let balloon = Balloon::new();
        self.control = balloon.control();
        Box::new(balloon)
    }

    /// 5.5.6: numbers of pages.
    fn request(&self, input: &mut Input<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..input.byte() % 32 {
            let page = match input.byte() {
                255 => input.u32(),
                // Around the ends of memory, and not where the rings are.
                page => 0xc0 + u32::from(page) * 4,
            };
            bytes.extend(page.to_le_bytes());
        }
        bytes
    }

    fn host(&mut self, input: &mut Input<'_>) {
        self.control.set_target(input.u32());
        let _ = self.control.actual();
    }
}

pub struct Random;

impl Subject for Random {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Entropy::new().expect("few descriptors are open"))
    }
}

/// Not the monitor's: it uses every buffer up.
#[derive(Default)]
pub struct Consumer {
    config: [u8; 8],
}

impl Subject for Consumer {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        Box::<Self>::default()
    }
}

impl VirtioDevice for Consumer {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        // VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
        1 << 32 | 1 << 29 | 1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (place, offset) in data.iter_mut().zip(offset..) {
            *place = usize::try_from(offset).ok().and_then(|at| self.config.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (byte, offset) in data.iter().zip(offset..) {
            if let Some(place) = usize::try_from(offset).ok().and_then(|at| self.config.get_mut(at)) {
                *place = *byte;
            }
        }
    }

    fn notified(&mut self, queue: usize, vrings: &mut Vrings) -> Result<(), DeviceError> {
        use virtio_queue::QueueT;
        let memory = vrings.memory.clone();
        // Not for ever, whatever the rings say.
        for _ in 0..100 {
            let Some(chain) = vrings.queues[queue].pop_descriptor_chain(&memory) else { break };
            vrings.queues[queue].add_used(&memory, chain.head_index(), 0)?;
        }
        vrings.notify(queue)
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Entropy
    }

    fn restore(&mut self, _: &DeviceState) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Any device of this kind, for a state that was read from a file.
pub fn any(state: &DeviceState) -> Box<dyn VirtioDevice> {
    match state {
        DeviceState::Block(state) => {
            Disk { parts: vec![], sizes: [0; 2], read_only: state.read_only }.device()
        }
        DeviceState::Net(_) => Box::new(
            Net::new(None::<OwnedFd>, [2, 0, 0, 0, 0, 1], None, None, None).expect("a device without a tap"),
        ),
        DeviceState::Vsock(_) => Box::new(Vsock::new(vec![]).expect("no listener")),
        DeviceState::Entropy => Random.device(),
        DeviceState::Balloon(_) => Box::new(Balloon::new()),
    }
}
