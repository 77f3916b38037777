//! A guest in which this very test program runs: the probe's initramfs with the program and its
//! libraries behind it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use model::microvm::MachineConfig;

/// In the environment of this test program in the guest.
const IN_GUEST: &str = "CORACLE_IN_GUEST";

/// Whether this is the guest. The tests that are its programs do nothing otherwise.
pub fn is_here() -> bool {
    std::env::var_os(IN_GUEST).is_some()
}

/// A machine that runs shell commands, and then one of this program's tests.
pub fn running(before: &str, test: &str) -> MachineConfig {
    let mut config = super::probe(&format!("{before} {IN_GUEST}=1 /program --exact {test} --nocapture"));
    config.memory_mib = 512;
    config
}

/// The initramfs for [`running`].
pub fn initramfs() -> File {
    let mut archive = tempfile::tempfile().unwrap();
    let probe = std::io::copy(&mut super::guest("probe.cpio"), &mut archive).unwrap();
    archive.write_all(&vec![0; probe.next_multiple_of(4) as usize - probe as usize]).unwrap();
    let mut entries: BTreeMap<String, (u32, Vec<u8>)> = BTreeMap::new();
    let program = std::env::current_exe().unwrap();
    entries.insert("program".into(), (0o100_755, std::fs::read(&program).unwrap()));
    for library in libraries() {
        for directory in library.ancestors().skip(1).filter(|directory| *directory != Path::new("/")) {
            entries.insert(name(directory), (0o040_755, Vec::new()));
        }
        entries.insert(name(&library), (0o100_755, std::fs::read(&library).unwrap()));
    }
    // Sorted by name, so that directories come before what is in them.
    for (number, (name, (mode, data))) in (1..).zip(&entries) {
        add(&mut archive, number, name, *mode, data);
    }
    add(&mut archive, 0, "TRAILER!!!", 0, &[]);
    archive.rewind().unwrap();
    archive
}

/// The program's libraries and their loader, under the names by which it looks for them.
fn libraries() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut found: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| path.to_str().is_some_and(|path| path.contains(".so")))
        .collect();
    found.dedup();
    // What the kernel is told to load it with.
    found.push("/lib64/ld-linux-x86-64.so.2".into());
    found
}

fn name(path: &Path) -> String {
    path.to_str().unwrap().trim_start_matches('/').to_owned()
}

/// A cpio entry (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn add(archive: &mut File, number: u32, name: &str, mode: u32, data: &[u8]) {
    let fields = [number, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    let mut entry = b"070701".to_vec();
    for field in fields {
        write!(entry, "{field:08X}").unwrap();
    }
    entry.extend(name.bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend(data);
    entry.resize(entry.len().next_multiple_of(4), 0);
    archive.write_all(&entry).unwrap();
}
