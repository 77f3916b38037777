//! Machines on real KVM, driven as the agent drives them.

mod common;

use std::os::fd::AsFd;

use common::{Console, Monitor, boot, guest, probe};
use model::microvm::{Attached, Disk, Ended, Request, Response, Vsock, VsockPort};

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_bzimage_boots_and_powers_off() {
    let mut monitor = Monitor::start();
    let console = boot(&mut monitor, probe("cat /proc/iomem /proc/interrupts"), "vmlinuz");
    let ended = monitor.wait_for_end();
    let text = console.text();
    assert_eq!(ended, Ended::PoweredOff, "{text}");
    assert!(text.contains("guest: Linux "), "{text}");
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn an_elf_kernel_boots_with_all_its_processors() {
    let mut monitor = Monitor::start();
    let mut config = probe("echo processors: $(grep -c ^processor /proc/cpuinfo)");
    config.vcpus = 16;
    let console = boot(&mut monitor, config, "vmlinux");
    let ended = monitor.wait_for_end();
    let text = console.text();
    assert_eq!(ended, Ended::PoweredOff, "{text}");
    assert!(text.contains("processors: 16"), "{text}");
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_kernel_that_crashes_is_a_reset() {
    let mut monitor = Monitor::start();
    let console = boot(&mut monitor, probe("echo c > /proc/sysrq-trigger"), "vmlinuz");
    assert_eq!(monitor.wait_for_end(), Ended::Reset, "{}", console.text());
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn a_machine_is_paused_resumed_and_stopped() {
    let mut monitor = Monitor::start();
    let mut config = probe("while true; do echo tick; sleep 0.1; done");
    config.vcpus = 2;
    let console = boot(&mut monitor, config, "vmlinuz");
    console.wait_for("tick");
    for _ in 0..5 {
        monitor.must(&Request::Pause, &[]);
        let Response::Description(description) = monitor.ask(&Request::Describe, &[]) else { panic!() };
        assert!(description.paused && description.vcpus == 2 && description.memory_mib == 256);
        let ticks = console.text().matches("tick").count();
        monitor.must(&Request::Resume, &[]);
        console.wait_until(|text| text.matches("tick").count() > ticks);
    }
    // An agent that was restarted finds its machine again.
    monitor.disconnect();
    monitor.connect();
    assert!(matches!(monitor.ask(&Request::Describe, &[]), Response::Description(_)));
    monitor.must(&Request::Stop, &[]);
    assert_eq!(monitor.wait_for_end(), Ended::Stopped);
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn the_end_is_written_down_for_an_agent_that_is_away() {
    let mut monitor = Monitor::start();
    let console = boot(&mut monitor, probe("true"), "vmlinuz");
    monitor.disconnect();
    assert_eq!(monitor.wait_for_end(), Ended::PoweredOff, "{}", console.text());
}

#[test]
#[ignore = "needs KVM that runs Linux: make test-microvm"]
fn the_guest_finds_its_devices() {
    let mut monitor = Monitor::start();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, b"from the host", 4096).unwrap();
    let vsock = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(vsock.path().join("1024")).unwrap();
    let mut config = probe(
        "cat /sys/block/vda/size; dd if=/dev/vda bs=13 count=1 skip=4096 iflag=skip_bytes 2>&1; \
         echo 'from the guest' | dd of=/dev/vda conv=fsync 2>&1; \
         head -c 8 /dev/hwrng | wc -c; ls /sys/bus/virtio/drivers/*; \
         grep -E 'LNRO|GED|vmgenid' /proc/interrupts; dmesg | grep -i -E 'crng|vmgenid'; \
         cat /sys/bus/acpi/devices/*/hid",
    );
    config.devices.disks = vec![Disk { parts: vec![Attached(3)], read_only: false, rate_limit: None }];
    config.devices.vsock = Some(Vsock { ports: vec![VsockPort { listener: Attached(4), port: 1024 }] });
    let console = Console::new();
    let files: [&dyn AsFd; 5] = [&guest("vmlinuz"), &guest("probe.cpio"), &console, &disk, &listener];
    monitor.must(&Request::Boot(Box::new(config)), &files);
    let ended = monitor.wait_for_end();
    let text = console.text();
    assert_eq!(ended, Ended::PoweredOff, "{text}");
    assert!(text.contains("16384") && text.contains("from the host"), "{text}");
    let mut written = [0; 14];
    std::os::unix::fs::FileExt::read_exact_at(&disk, &mut written, 0).unwrap();
    assert_eq!(&written, b"from the guest", "{text}");
    println!("{text}");
}
