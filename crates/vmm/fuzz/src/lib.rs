//! What guests can do to the monitor's devices, and files to its reader of snapshots, chosen by a
//! fuzzer: each function takes any bytes as a program of such deeds, and must neither panic nor hang.
//!
//! `fuzz_targets/` gives them to cargo-fuzz (`make fuzz`); `tests/fuzz.rs` of the monitor includes
//! this file, and runs them with the kept corpus and random inputs wherever its tests run.

mod guest;
mod input;
mod snapshot;
mod subjects;
mod tap;

use input::Input;

pub type Target = fn(&[u8]);

/// All targets, with the names of their corpora.
pub const TARGETS: [(&str, Target); 7] = [
    ("block", block),
    ("net", net),
    ("vsock", vsock),
    ("balloon", balloon),
    ("entropy", entropy),
    ("transport", transport),
    ("snapshot", snapshot),
];

pub fn block(input: &[u8]) {
    let mut input = Input::new(input);
    let disk = subjects::Disk::new(&mut input);
    guest::run(disk, input);
}

pub fn net(input: &[u8]) {
    let mut input = Input::new(input);
    let network = subjects::Network::new(&mut input);
    guest::run(network, input);
}

pub fn vsock(input: &[u8]) {
    guest::run(subjects::Sockets::new(), Input::new(input));
}

pub fn balloon(input: &[u8]) {
    guest::run(subjects::Memory::new(), Input::new(input));
}

pub fn entropy(input: &[u8]) {
    guest::run(subjects::Random, Input::new(input));
}

/// The registers, with a device behind them that takes every buffer as it comes.
pub fn transport(input: &[u8]) {
    guest::run(subjects::Consumer::default(), Input::new(input));
}

pub fn snapshot(input: &[u8]) {
    snapshot::run(Input::new(input));
}
