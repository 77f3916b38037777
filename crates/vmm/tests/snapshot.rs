//! Snapshots on real KVM: a machine is written down, and goes on elsewhere.

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{Console, Monitor, guest, probe};
use model::microvm::{Attached, Devices, Disk, Ended, Request, Response, RestoreConfig};

/// Counts aloud, and says what the second block of its disk begins with.
const COUNT: &str = "i=0; while true; do echo count $i on $(head -c 5 /dev/vda) $(cat /sys/block/vda/size); \
     echo 1 > /proc/sys/vm/drop_caches; i=$((i+1)); sleep 0.1; done";

fn disk(contents: &[u8], size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(contents, 0).unwrap();
    file.set_len(size).unwrap();
    file
}

fn one_disk(index: u8) -> Devices {
    let disk = Disk { parts: vec![Attached(index)], read_only: false, rate_limit: None };
    Devices { disks: vec![disk], ..Devices::default() }
}

struct Written {
    state: File,
    memory: File,
    /// How far the guest had counted.
    count: u64,
}

fn counted(text: &str) -> u64 {
    let lines = text.lines().rev().filter(|line| line.starts_with("count ") && line.len() > 20);
    lines.filter_map(|line| line.split(' ').nth(1)?.parse().ok()).next().unwrap_or(0)
}

/// Boots a guest that counts on a disk that says "first", and writes it down.
fn snapshot(vcpus: u8, end: impl FnOnce(&mut Monitor, &Console)) -> Written {
    let mut monitor = Monitor::start();
    let mut config = probe(COUNT);
    config.vcpus = vcpus;
    config.devices = one_disk(3);
    let console = Console::new();
    let first = disk(b"first", 1 << 20);
    let files: [&dyn AsFd; 4] = [&guest("vmlinuz"), &guest("probe.cpio"), &console, &first];
    monitor.must(&Request::Boot(Box::new(config)), &files);
    console.wait_for("count 3 on first 2048");
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let (request, pages) = monitor.snapshot();
    let refused = monitor.must_refuse(&request, &[&state, &memory, &pages]);
    assert!(refused.contains("paused"), "{refused}");
    monitor.must(&Request::Pause, &[]);
    let count = counted(&console.text());
    monitor.write_down(&state, &memory);
    end(&mut monitor, &console);
    Written { state, memory, count }
}

fn restore_config() -> RestoreConfig {
    RestoreConfig {
        state: Attached(0),
        memory: Attached(1),
        devices: one_disk(3),
        console: Some(Attached(2)),
        new_identity: true,
        userfaultfd: None,
    }
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_snapshot_goes_on_as_often_as_wanted_on_other_disks() {
    let written = snapshot(2, |monitor, console| {
        // The original goes on, too.
        let count = counted(&console.text());
        monitor.must(&Request::Resume, &[]);
        console.wait_until(|text| counted(text) > count + 2);
        monitor.must(&Request::Stop, &[]);
        assert_eq!(monitor.wait_for_end(), Ended::Stopped);
    });
    assert!(written.memory.metadata().unwrap().blocks() * 512 < 200 << 20, "not sparse");
    let clones: Vec<_> = (0..2)
        .map(|number| {
            let mut monitor = Monitor::start();
            let console = Console::new();
            let other = disk(format!("disk{number}").as_bytes(), 2 << 20);
            let files: [&dyn AsFd; 4] = [&written.state, &written.memory, &console, &other];
            monitor.must(&Request::Restore(Box::new(restore_config())), &files);
            (monitor, console)
        })
        .collect();
    for (number, (mut monitor, console)) in clones.into_iter().enumerate() {
        let there = format!(" on disk{number} 4096");
        console.wait_until(|text| text.contains(&there) && counted(text) > written.count + 3);
        let Response::Description(description) = monitor.ask(&Request::Describe, &[]) else { panic!() };
        assert_eq!((description.vcpus, description.memory_mib), (2, 256));
        println!("restored in {} us", description.started_in_us);
        assert!(!console.text().contains(&format!("count {} ", written.count.saturating_sub(2))));
        monitor.must(&Request::Stop, &[]);
        assert_eq!(monitor.wait_for_end(), Ended::Stopped);
    }
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_restored_machine_is_written_down_again() {
    let written = snapshot(1, |_, _| {});
    let mut monitor = Monitor::start();
    let console = Console::new();
    let same = disk(b"first", 1 << 20);
    let files: [&dyn AsFd; 4] = [&written.state, &written.memory, &console, &same];
    monitor.must(&Request::Restore(Box::new(restore_config())), &files);
    console.wait_until(|text| counted(text) > written.count + 3);
    monitor.must(&Request::Pause, &[]);
    let count = counted(&console.text());
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    monitor.write_down(&state, &memory);
    let mut again = Monitor::start();
    let console = Console::new();
    let files: [&dyn AsFd; 4] = [&state, &memory, &console, &same];
    again.must(&Request::Restore(Box::new(restore_config())), &files);
    console.wait_until(|text| counted(text) > count + 3);
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_snapshot_that_does_not_fit_is_refused_and_says_why() {
    let written = snapshot(1, |_, _| {});
    let mut monitor = Monitor::start();
    let (console, other) = (Console::new(), disk(b"other", 1 << 20));
    let mut refused = |state: &File, memory: &File, config: RestoreConfig| {
        let files: [&dyn AsFd; 4] = [state, memory, &console, &other];
        monitor.must_refuse(&Request::Restore(Box::new(config)), &files)
    };
    let size = written.state.metadata().unwrap().len();
    let mut bytes = vec![0; size as usize];
    written.state.read_exact_at(&mut bytes, 0).unwrap();
    let with_state = |bytes: &[u8]| disk(bytes, bytes.len() as u64);

    let text = refused(&with_state(&bytes[..bytes.len() / 2]), &written.memory, restore_config());
    assert!(text.contains("truncated"), "{text}");
    let mut newer = bytes.clone();
    newer[8] = 77;
    let text = refused(&with_state(&newer), &written.memory, restore_config());
    assert!(text.contains("version 77"), "{text}");
    let mut damaged = bytes.clone();
    damaged[2000] ^= 1;
    let text = refused(&with_state(&damaged), &written.memory, restore_config());
    assert!(text.contains("checksum"), "{text}");
    let text = refused(&disk(b"", 100), &written.memory, restore_config());
    assert!(text.contains("not a snapshot"), "{text}");

    // The document changed, and its checksum made to hold.
    let document = String::from_utf8(bytes[24..].to_vec()).unwrap();
    let rewritten = |from: &str, to: &str| {
        let document = document.replacen(from, to, 1);
        let mut bytes = bytes[..24].to_vec();
        bytes[12..16].copy_from_slice(&crc32fast::hash(document.as_bytes()).to_le_bytes());
        bytes[16..24].copy_from_slice(&(document.len() as u64).to_le_bytes());
        bytes.extend(document.into_bytes());
        with_state(&bytes)
    };
    for (from, to, why) in [
        ("AuthenticAMD", "GenuineIntel", "another processor"),
        ("\"family\":", "\"family\":1", "another processor"),
        ("\"memory_mib\":256", "\"memory_mib\":512", "but the machine has 536870912"),
        ("\"memory_mib\":256", "\"memory_mib\":0", "not 0"),
        ("\"memory_mib\":256", "\"memory\":256", "not understood"),
        ("\"devices\":[", "\"devices\":[7,", "not understood"),
    ] {
        let text = refused(&rewritten(from, to), &written.memory, restore_config());
        assert!(text.contains(why), "{to}: {text}");
    }

    for size in [0, 4096, (100 << 20) + 5, (256 << 20) - 1, (256 << 20) + 1, 512 << 20] {
        let text = refused(&written.state, &disk(b"", size), restore_config());
        assert!(text.contains(&format!("memory file holds {size} bytes")), "{text}");
    }
    let config = RestoreConfig { devices: Devices::default(), ..restore_config() };
    let text = refused(&written.state, &written.memory, config);
    assert!(text.contains("devices"), "{text}");
    let config = RestoreConfig { memory: Attached(9), ..restore_config() };
    let text = refused(&written.state, &written.memory, config);
    assert!(text.contains("attached file 9"), "{text}");

    // After all that, the monitor still restores.
    let files: [&dyn AsFd; 4] = [&written.state, &written.memory, &console, &other];
    monitor.must(&Request::Restore(Box::new(restore_config())), &files);
    console.wait_for(" on other 2048");
}

/// As the agent opens it.
fn userfaultfd() -> File {
    File::options().read(true).write(true).open("/dev/userfaultfd").unwrap()
}

fn on_demand() -> RestoreConfig {
    RestoreConfig { userfaultfd: Some(Attached(4)), ..restore_config() }
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_machine_is_restored_on_demand_and_written_down_again() {
    let written = snapshot(2, |_, _| {});
    let (console, other) = (Console::new(), disk(b"other", 1 << 20));
    let mut monitor = Monitor::start();
    let files: [&dyn AsFd; 5] = [&written.state, &written.memory, &console, &other, &userfaultfd()];
    monitor.must(&Request::Restore(Box::new(on_demand())), &files);
    console.wait_until(|text| text.contains(" on other 2048") && counted(text) > written.count + 3);
    let Response::Description(description) = monitor.ask(&Request::Describe, &[]) else { panic!() };
    println!("restored in {} us", description.started_in_us);
    let memory = resident(monitor.pid());
    println!("{memory} KiB resident");
    assert!(memory < 200 << 10, "all of it was read: {memory} KiB");
    // What was never touched is in the next snapshot, too.
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    monitor.must(&Request::Pause, &[]);
    let count = counted(&console.text());
    monitor.write_down(&state, &memory);
    monitor.must(&Request::Stop, &[]);
    assert_eq!(monitor.wait_for_end(), Ended::Stopped);
    let (mut again, console) = (Monitor::start(), Console::new());
    let files: [&dyn AsFd; 4] = [&state, &memory, &console, &other];
    again.must(&Request::Restore(Box::new(restore_config())), &files);
    console.wait_until(|text| counted(text) > count + 3);
}

/// Of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn memory_that_cannot_be_served_ends_the_machine_with_a_reason() {
    let written = snapshot(1, |_, _| {});
    let (console, other) = (Console::new(), disk(b"other", 1 << 20));
    let mut monitor = Monitor::start();
    // Not the device: refused, and the monitor still restores.
    let files: [&dyn AsFd; 5] = [&written.state, &written.memory, &console, &other, &other];
    let text = monitor.must_refuse(&Request::Restore(Box::new(on_demand())), &files);
    assert!(text.contains("served on demand"), "{text}");
    let short = disk(b"", 100 << 20);
    let files: [&dyn AsFd; 5] = [&written.state, &short, &console, &other, &userfaultfd()];
    let text = monitor.must_refuse(&Request::Restore(Box::new(on_demand())), &files);
    assert!(text.contains("memory file holds"), "{text}");
    let files: [&dyn AsFd; 5] = [&written.state, &written.memory, &console, &other, &userfaultfd()];
    monitor.must(&Request::Restore(Box::new(on_demand())), &files);
    console.wait_until(|text| counted(text) > written.count + 1);
    // The guest goes on until it needs what is gone.
    written.memory.set_len(0).unwrap();
    let Ended::Failed { message } = monitor.wait_for_end() else { panic!() };
    assert!(message.contains("the snapshot's memory cannot be read"), "{message}");
}
