//! Scratch disks on the real kernel. Needs root and a loop driver.

mod support;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use agent::loop_device;
use agent::scratch::{MOUNT_OPTIONS, ScratchDir, ScratchError};
use support::on_private_host;

const GIB: u64 = 1 << 30;

fn mount(disk: &Path, at: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(disk).unwrap();
    let device = loop_device::attach(&file).unwrap();
    fs::create_dir_all(at).unwrap();
    let status =
        Command::new("mount").args(["-t", "ext4", "-o", MOUNT_OPTIONS]).arg(device.path()).arg(at).status();
    assert!(status.unwrap().success());
}

fn devices_of(disk: &Path) -> String {
    let output = Command::new("losetup").arg("-j").arg(disk).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_full_disk_is_its_tasks_own() {
    on_private_host("a_full_disk_is_its_tasks_own", || {
        let directory = tempfile::tempdir().unwrap();
        let scratch = ScratchDir::open(&directory.path().join("scratch")).unwrap();
        let full = scratch.create("full", 1).unwrap();
        let other = scratch.create("other", 1).unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        mount(&full.path, &a);
        mount(&other.path, &b);
        assert_eq!(fs::read_dir(&a).unwrap().count(), 1, "lost+found only");

        // Reserve instead of writing: the same limit, without a gigabyte of writes.
        let file = fs::File::create(a.join("file")).unwrap();
        let too_much = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 * GIB);
        assert_eq!(too_much, Err(rustix::io::Errno::NOSPC));
        drop(file);
        // What failed is taken back, so fill it in steps.
        let mut step = 256 << 20;
        let mut number = 0;
        while step >= 4096 {
            let file = fs::File::create(a.join(number.to_string())).unwrap();
            number += 1;
            if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, step).is_err() {
                step /= 2;
            }
        }
        let error = fs::File::create(a.join("last")).and_then(|mut f| f.write_all(&[1; 8192])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        fs::write(b.join("file"), vec![1; 1 << 20]).unwrap();
        // Almost all of the gigabyte is the task's.
        let size = rustix::fs::statvfs(&b).unwrap();
        assert!(size.f_blocks * size.f_frsize > GIB * 96 / 100);

        // Removed while mounted, it goes with the mount, and the loop device with both.
        scratch.remove("other").unwrap();
        fs::write(b.join("file2"), "x").unwrap();
        for at in [&a, &b] {
            assert!(Command::new("umount").arg(at).status().unwrap().success());
        }
        assert_eq!(devices_of(&full.path), "");
    });
}

#[test]
fn budgets_count_what_disks_may_grow_to() {
    let directory = tempfile::tempdir().unwrap();
    let scratch = ScratchDir::open(directory.path()).unwrap();
    assert_eq!(scratch.budget(1.0).unwrap().promised, 0);
    let disk = scratch.create("a", 20).unwrap();
    assert_eq!(disk.size, 20 * GIB);
    assert_eq!(fs::metadata(&disk.path).unwrap().len(), 20 * GIB);
    scratch.create("b", 200).unwrap();
    let budget = scratch.budget(1000.0).unwrap();
    assert!((219 * GIB..=220 * GIB).contains(&budget.promised), "{budget:?}");
    assert!(budget.available > 0);
    assert_eq!(scratch.budget(0.0).unwrap().available, 0);

    assert_eq!(scratch.list().unwrap(), ["a", "b"]);
    let renamed = scratch.rename(disk, "task-1").unwrap();
    fs::write(directory.path().join("c.partial"), "half").unwrap();
    assert_eq!(scratch.list().unwrap(), ["b", "task-1"]);
    assert!(!directory.path().join("c.partial").exists());
    scratch.remove("task-1").unwrap();
    scratch.remove("task-1").unwrap();
    assert!(!renamed.path.exists());
}

#[test]
fn bad_names_and_sizes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let scratch = ScratchDir::open(directory.path()).unwrap();
    for name in ["", "..", "a/b", "a.b", "ä", &"x".repeat(129)] {
        assert!(matches!(scratch.create(name, 1), Err(ScratchError::Name(_))), "{name}");
    }
    for size in [0, 201, u64::MAX] {
        assert!(matches!(scratch.create("a", size), Err(ScratchError::Size(_))), "{size}");
    }
    assert_eq!(scratch.list().unwrap(), Vec::<String>::new());
}

/// Prints what a disk costs; asserts nothing about time.
#[test]
fn cost_of_a_disk() {
    on_private_host("cost_of_a_disk", || {
        let directory = tempfile::tempdir().unwrap();
        let scratch = ScratchDir::open(directory.path()).unwrap();
        let start = Instant::now();
        scratch.prepare(20).unwrap();
        println!("template of 20 GiB: {:?}", start.elapsed());
        let at = directory.path().join("mnt");
        for round in 0..5 {
            let start = Instant::now();
            let disk = scratch.create(&format!("d{round}"), 20).unwrap();
            let created = start.elapsed();
            let file = OpenOptions::new().read(true).write(true).open(&disk.path).unwrap();
            let start = Instant::now();
            let device = loop_device::attach(&file).unwrap();
            let attached = start.elapsed();
            drop(device);
            let used = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk.path).unwrap()) / 2;
            let start = Instant::now();
            mount(&disk.path, &at);
            println!(
                "copy {created:?} ({used} KiB), attach {attached:?}, attach and mount(8) {:?}",
                start.elapsed()
            );
            assert!(Command::new("umount").arg(&at).status().unwrap().success());
        }
    });
}
