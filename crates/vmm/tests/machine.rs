//! Machines on real KVM, driven as the agent drives them.

mod common;

use common::{Monitor, boot, probe};
use model::microvm::{Ended, Request, Response};

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
    config.vcpus = 3;
    let console = boot(&mut monitor, config, "vmlinux");
    let ended = monitor.wait_for_end();
    let text = console.text();
    assert_eq!(ended, Ended::PoweredOff, "{text}");
    assert!(text.contains("processors: 3"), "{text}");
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
        let text = console.text();
        monitor.must(&Request::Resume, &[]);
        console.wait_for(&(text + "tick"));
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
